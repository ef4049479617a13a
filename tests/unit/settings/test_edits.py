"""Settings are changed in the text of params.yaml, and nothing else of it."""

import pytest

from vabal.errors import UserError
from vabal.settings.edits import changed
from vabal.settings.models import Params
from vabal.settings.params import dump, parse, read_yaml

NEW = {"backbone.name": "torchvision:resnet18", "backbone.weights": "file:/a b/c#d: e.safetensors"}


def test_a_whole_file_changes_in_two_lines_alone() -> None:
    text = dump(Params())
    new = changed(text, NEW)
    differing = [
        (before, after) for before, after in zip(text.splitlines(), new.splitlines(), strict=True) if before != after
    ]
    assert [after.strip().partition(":")[0] for _, after in differing] == ["name", "weights"]
    assert all(before.partition("#")[2] == after.rpartition("  #")[2] for before, after in differing)
    assert parse(read_yaml(new)).backbone.weights == NEW["backbone.weights"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed: 3\n",
        "backbone: {}  # all defaults\nseed: 3\n",
        "# mine\nbackbone:\n    sizes: [32]\n# of the seed\nseed: 3\n",
        "backbone:\n  weights: hub\n\nseed: 3",
    ],
)
def test_sections_and_lines_that_are_missing_are_added(text: str) -> None:
    new = changed(text, NEW)
    assert {line for line in text.splitlines() if "backbone" not in line and "weights" not in line} <= set(
        new.splitlines()
    )
    chosen = parse(read_yaml(new)).backbone
    assert (chosen.name, chosen.weights) == (NEW["backbone.name"], NEW["backbone.weights"])


def test_a_section_that_is_written_in_one_line_is_left_to_people() -> None:
    with pytest.raises(UserError, match=r"write by hand backbone\.name: torchvision:resnet18, backbone\.weights: "):
        changed("backbone: {sizes: [32]}\n", NEW)


def test_a_value_that_is_no_setting_s_is_refused() -> None:
    with pytest.raises(UserError, match=r"backbone\.weights"):
        changed("", {"backbone.weights": "somewhere"})
