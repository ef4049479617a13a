"""What is removed is this program's own: folders with other people's work beside ours stay as they are."""

from pathlib import Path

import pytest

from flows import tasks
from vabal import params
from vabal.errors import UserError
from vabal.workspace import Workspace


def test_a_round_refuses_a_stage_store_in_a_folder_with_other_work_before_it_begins(tmp_path: Path) -> None:
    shared, root = tmp_path / "shared", tmp_path / "work"
    (shared / "thesis" / "chapter1").mkdir(parents=True)
    (root / "empty").mkdir(parents=True)
    place = Workspace(root)
    with pytest.raises(UserError, match="name a new or empty folder"):
        tasks.claim_stores(place, params.parse({"stages": str(shared)}))
    assert [path.name for path in shared.rglob("*")] == ["thesis", "chapter1"]
    for setting in ("empty", "empty", str(tmp_path / "new"), ".vabal/stages"):
        tasks.claim_stores(place, params.parse({"stages": setting}))
    with pytest.raises(UserError, match="another workspace"):
        tasks.claim_stores(Workspace(tmp_path / "work" / "empty"), params.parse({"stages": str(tmp_path / "new")}))
