"""`params.yaml`: what is read, filled in, refused and written again."""

import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vabal.errors import UserError
from vabal.settings.models import Params
from vabal.settings.params import dump, load, override, parse, read_yaml, recorded
from vabal.settings.presets import PRESETS


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(raw: object) -> str:
    with pytest.raises(UserError) as caught:
        parse(raw)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"sede": 1}, "sede: unknown setting"),
        ({"vae": {"epoch": 3}}, "vae.epoch: unknown setting"),
        ({"selection": {"buget": 3}}, "selection.buget: unknown setting"),
        ({"selection": {"budget": 0}}, "selection.budget: input should be greater than or equal to 1, found 0"),
        ({"selection": {"batch": None}}, "selection.batch"),
        ({"labelling": {"share": 1.01}}, "labelling.share: input should be less than or equal to 1, found 1.01"),
        ({"images": {"channels": 2}}, "images.channels: input should be 1 or 3, found 2"),
        ({"images": {"size": "32"}}, "images.size: input should be a valid integer, found '32'"),
        ({"vae": {"stop_gradient": 1}}, "vae.stop_gradient: input should be a valid boolean, found 1"),
        ({"vae": {"learning_rate": float("nan")}}, "vae.learning_rate"),
        ({"vae": {"learning_rate": float("inf")}}, "vae.learning_rate"),
        ({"seed": True}, "seed: input should be a valid integer, found True"),
        ({"method": {"preset": "papper"}}, "method.preset"),
        ({"method": "paper"}, "method"),
        ({"vae": [1]}, "vae"),
        ({"stages": "gs://bucket/x"}, "stages: must be a folder or an s3:// address"),
        ({"schedule": {"timezone": "Europe/Zürich"}}, "schedule.timezone: must be an IANA time zone"),
        ({"schedule": {"cron": "0 2 * *"}}, "schedule.cron: must have five fields"),
        ({"schedule": {"cron": "0 0 31 2 *"}}, "schedule.cron: never fires"),
        ({"storage": {"bucket": "No"}}, "storage.bucket"),
        ({"compute": {"device": "gpu"}}, "compute.device"),
        ({"workspace": {"name": "../up"}}, "workspace.name"),
    ],
)
def test_a_wrong_setting_is_refused_and_named_by_its_path(raw: dict[str, Any], path: str) -> None:
    assert refusal(raw).startswith(f"params.yaml: {path}")


def test_every_wrong_setting_is_named_at_once() -> None:
    message = refusal({"vae": {"epochs": 0, "foo": 1}, "seed": -1})
    assert all(path in message for path in ("vae.epochs", "vae.foo", "seed"))


@pytest.mark.parametrize("raw", [[], "text", 3])
def test_a_file_that_holds_no_sections_is_refused(raw: object) -> None:
    assert "expected sections and settings" in refusal(raw)


def test_an_empty_file_means_the_default_preset() -> None:
    assert parse(None) == parse({}) == parse({"method": {"preset": "vabal"}})


def test_an_empty_section_means_its_defaults() -> None:
    assert parse({"vae": None, "classifier": None}) == parse(None)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_in_what_is_left_out(preset: str) -> None:
    params = parse({"method": {"preset": preset}, "classifier": {"epochs": 7}})
    assert params.classifier.epochs == 7
    for section, values in PRESETS[preset].items():
        for key, value in values.items():
            assert getattr(getattr(params, section), key) == value


def test_a_setting_in_the_file_wins_over_the_preset() -> None:
    params = parse(
        {"method": {"preset": "published_code"}, "vae": {"warmup_epochs": 0}, "selection": {"batch": "quota"}}
    )
    assert params.vae.warmup_epochs == 0
    assert params.selection.batch == "quota"
    assert params.vae.heads == "fc_relu_bn"


def test_a_setting_equal_to_the_models_default_still_wins_over_the_preset() -> None:
    default = Params().vae.learning_rate
    assert parse({"method": {"preset": "paper"}, "vae": {"learning_rate": default}}).vae.learning_rate == default


def test_what_a_preset_sets_is_a_setting_of_its_section() -> None:
    for preset in PRESETS.values():
        for section, values in preset.items():
            assert set(values) <= set(type(getattr(Params(), section)).model_fields)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_dumped_parses_to_the_same_settings(preset: str, tmp_path: Path) -> None:
    params = parse({"method": {"preset": preset}})
    assert load(written(tmp_path, dump(params))) == params


# Characters that YAML gives a meaning to, and some that it escapes.
texts = st.text(string.printable + "é\u2028\x07", max_size=12)
settings = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "method": st.fixed_dictionaries({"preset": st.sampled_from(sorted(PRESETS))}),
        "vae": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(1e-12, 1e6),
                "warmup_epochs": st.integers(0, 3),
                "min_steps": st.sampled_from([0, 2000]),
            },
        ),
        "selection": st.fixed_dictionaries(
            {}, optional={"strategy": texts.filter(bool), "batch": st.sampled_from(["topk", "gumbel", "quota"])}
        ),
        "workspace": st.fixed_dictionaries(
            {"name": st.sampled_from(["1e5", "0x1f", "12", "no", "null", "a-b", "0100", "0o17", "0x1", "1e3"])}
        ),
        "storage": st.fixed_dictionaries({"git_remote": st.none() | texts}),
    },
)


@given(settings)
def test_any_settings_survive_being_written_and_read(tmp_path_factory: pytest.TempPathFactory, raw: Any) -> None:
    params = parse(raw)
    assert load(written(tmp_path_factory.mktemp("params"), dump(params))) == params


def test_the_dumped_file_explains_every_setting_it_holds() -> None:
    lines = dump(Params()).splitlines()
    settings_lines = [line for line in lines if re.match(r"^  \w+:", line)]
    assert len(settings_lines) > 30
    assert all("  # " in line for line in settings_lines)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("2e+1", 20.0), (".5", 0.5), ("1", 1.0)])
def test_numbers_are_read_as_yaml_1_2_writes_them(tmp_path: Path, text: str, value: float) -> None:
    assert load(written(tmp_path, f"vae:\n  learning_rate: {text}\n")).vae.learning_rate == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("0100", 100), ("+1", 1), ("-08", -8), ("0o17", 15), ("0x1F", 31), ("~", None), ("TRUE", True), ("", None)],
        *[
            (text, text)
            for text in ("1:30", "yes", "no", "on", "off", "1_000", "2026-01-01", "0b1", "-0x1", "tRue", "=")
        ],
        *[("'0100'", "0100"), ("1e3", 1000.0), ("-.5", -0.5), ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2})],
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert read_yaml(text) == value
    assert type(read_yaml(text)) is type(value)


def test_a_time_is_refused_where_a_number_is_meant_and_a_leading_zero_means_nothing(tmp_path: Path) -> None:
    assert load(written(tmp_path, "selection:\n  budget: 0100\n")).selection.budget == 100
    with pytest.raises(UserError, match=r"images\.size: input should be a valid integer, found '1:30'"):
        load(written(tmp_path, "images:\n  size: 1:30\n"))


def test_a_quoted_number_stays_text_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vae\.learning_rate: input should be a valid number, found '1e-4'"):
        load(written(tmp_path, 'vae:\n  learning_rate: "1e-4"\n'))


def test_plain_pyyaml_would_have_read_text() -> None:
    assert yaml.safe_load("1e-4") == "1e-4"


@pytest.mark.parametrize(
    ("text", "line"), [("seed: 1\nvae: {}\nseed: 2\n", 3), ("vae:\n  epochs: 1\n  epochs: 2\n", 3)]
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"line {line}: \w+ stands twice in one section"):
        load(written(tmp_path, text))


@pytest.mark.parametrize("content", [b"vae: [", b"\xff\xfe\x00", b"seed: !!int 1:30", b"a: !!python/name:os.sep"])
def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not valid YAML") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_bring_it_back(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"git checkout params\.yaml"):
        load(tmp_path / "params.yaml")


def test_overrides_change_the_setting_they_name_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 4\nselection:\n  budget: 7\n")
    params = load(path, {"selection.strategy": "random", "vae.epochs": 2, "seed": 5})
    assert (params.seed, params.selection.budget, params.selection.strategy, params.vae.epochs) == (5, 7, "random", 2)


def test_overrides_fill_an_empty_file(tmp_path: Path) -> None:
    assert load(written(tmp_path, ""), {"selection.budget": 3}).selection.budget == 3


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"selection\.budgets: unknown setting"):
        load(written(tmp_path, "seed: 1\n"), {"selection.budgets": 3})


def test_overrides_do_not_hide_that_the_file_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected sections and settings"):
        load(written(tmp_path, "- 1\n"), {"selection.budget": 3})


def test_overriding_leaves_the_given_mapping_as_it_was() -> None:
    raw: dict[str, Any] = {"selection": {"budget": 1}}
    assert override(raw, {"selection.budget": 2, "seed": 1}) == {"selection": {"budget": 2}, "seed": 1}
    assert raw == {"selection": {"budget": 1}}


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().vae.epochs = 3  # type: ignore[misc]


def test_a_setting_that_is_none_any_more_is_let_through_in_an_old_file_and_not_written_again() -> None:
    old = parse({"promotion": {"min_gain": 0.0, "tolerance": 0.01, "max_recall_drop": 0.05, "resamples": 10000}})
    assert old == parse({})
    assert "resamples" not in dump(old)


def test_scripts_of_the_first_version_find_the_settings_where_they_were() -> None:
    import vabal
    from vabal import params as found  # type: ignore[attr-defined]  # new scripts are to find it in `vabal.settings` alone

    assert found.parse({"selection": found.read_yaml("budget: 7")}).selection.budget == 7
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vabal.nothing  # type: ignore[attr-defined]  # is what is tested


def test_a_manifest_from_before_a_setting_tells_what_rounds_did_then() -> None:
    told = parse({"method": {"preset": "vabal"}}).model_dump()
    assert recorded(told) == parse({})
    before = {**told, "vae": {key: value for key, value in told["vae"].items() if key != "max_steps"}}
    assert recorded(before).vae.max_steps == 0
    earlier = {**told, "vae": {key: value for key, value in told["vae"].items() if key != "rows"}}
    assert recorded(earlier).vae.rows == 0
    drawn = {key: value for key, value in told["probabilities"].items() if key != "sampling"}
    assert recorded({**told, "probabilities": drawn}).probabilities.sampling == "anchored"
    computed = {key: value for key, value in told["compute"].items() if key != "precision"}
    assert recorded({**told, "compute": computed}).compute.precision == "float32"
    assert recorded({**told, "vae": told["vae"] | {"max_steps": 7}}).vae.max_steps == 7


def test_a_manifest_whose_settings_are_none_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^settings of the manifest: vae: .*found 3$"):
        recorded({"vae": 3})
