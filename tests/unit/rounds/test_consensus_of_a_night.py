from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.small_pools import WHEN
from tests.support.small_rounds import first_round
from vabal import pools
from vabal.labels import answers, arrivals
from vabal.rounds import steps
from vabal.rounds.context import own_store


@pytest.mark.parametrize(("rule", "label"), [("latest", "2"), ("majority", "1")])
def test_a_night_settles_what_people_said_by_the_rule_of_its_settings(tmp_path: Path, rule: str, label: str) -> None:
    with first_round(tmp_path, 40, {"classifier.learner": "scratch"}) as begun:
        place = begun.workspace
        made = pools.load(place.data)
        sample = made.unlabeled["sample_id"].iloc[0]
        file = tmp_path / "labels.csv"
        file.write_text(f"{sample},1,ann\n{sample},1,bob\n{sample},2,eve\n")
        answers.import_labels(place.inbox, made, file, WHEN)
        night = replace(begun.round, inbox=tuple(arrivals.pending(place.inbox)))
        key = steps.intake(place, night, rule)
        view = own_store(place).get("intake", key)
        assert view is not None
        after = pools.load(view)
    assert after.labeled.set_index("sample_id")["label"][sample] == label
    assert len(after.label_events[after.label_events["sample_id"] == sample]) == (4 if rule == "majority" else 3)
