"""The JSON schema of `params.yaml`: what it refuses, the models refuse; what `vabal init` writes, it accepts."""

import json
import subprocess
import sys
from typing import Any

import jsonschema
import pytest

from vabal.errors import UserError
from vabal.settings.models import Params
from vabal.settings.params import dump, parse, read_yaml
from vabal.settings.presets import PRESETS
from vabal.settings.schema import document

VALIDATOR = jsonschema.Draft202012Validator(document())


def wrong(settings: Any) -> list[str]:
    """The dotted paths of what the schema refuses."""
    return [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(settings)]


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(document())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_file_is_accepted_whatever_the_preset(preset: str) -> None:
    assert wrong(read_yaml(dump(parse({"method": {"preset": preset}})))) == []
    assert wrong({"method": {"preset": preset}, **PRESETS[preset]}) == []


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"clasifier": {}}, ""),
        ({"classifier": {"widht": 16}}, "classifier"),
        ({"classifier": {"width": 0}}, "classifier.width"),
        ({"classifier": {"width": "16"}}, "classifier.width"),
        ({"vae": {"energy": "cube"}}, "vae.energy"),
        ({"audit": {"anchor": "a bucket"}}, "audit.anchor"),
        ({"seed": -1}, "seed"),
        ([], ""),
    ],
)
def test_a_wrong_setting_is_refused_where_it_stands_as_the_models_do(settings: Any, where: str) -> None:
    assert wrong(settings) == [where]
    with pytest.raises(UserError):
        parse(settings)


def test_every_setting_has_a_description_for_the_editor() -> None:
    definitions = document()["$defs"]
    for section in Params.model_fields:
        model = document()["properties"][section].get("$ref", "").rpartition("/")[2]
        for name, setting in definitions.get(model, {}).get("properties", {}).items():
            assert setting["description"], f"{section}.{name}"


def test_the_command_prints_it() -> None:
    command = [sys.executable, "-m", "vabal.cli", "settings", "schema"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == document()
