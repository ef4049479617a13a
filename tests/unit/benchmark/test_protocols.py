import re
from pathlib import Path

import pytest

from vabal import strategies
from vabal.benchmark import protocols
from vabal.benchmark.protocols import PROTOCOLS, Protocol
from vabal.benchmark.variants import Variant, parse_variant, parse_variants, split_specs
from vabal.errors import UserError
from vabal.settings import params
from vabal.sources import Imbalance

PAGE = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text(encoding="utf-8")
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "neu": 9, "digits": 10, "elpv": 8}

every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


def kind_of(protocol: Protocol) -> str:
    (source,) = protocol.sources
    return source.partition(":")[0]


# --- specs ------------------------------------------------------------------------------------------------------------


def test_a_name_alone_is_label_and_strategy() -> None:
    assert parse_variant(" random ") == Variant("random", "random", {})


def test_a_spec_without_a_label_is_its_own_label() -> None:
    spec = "vabal[probabilities.use_prior=false;vae.epochs=40]"
    assert parse_variant(spec) == Variant(spec, "vabal", {"probabilities.use_prior": False, "vae.epochs": 40})


def test_a_label_stands_in_front_and_values_are_yaml() -> None:
    found = parse_variant("no prior = vabal[ vae.learning_rate = 1e-4 ; vae.energy=absolute; vae.class_weight=0 ]")
    assert found.label == "no prior"
    assert found.strategy == "vabal"
    assert found.settings == {"vae.learning_rate": 1e-4, "vae.energy": "absolute", "vae.class_weight": 0}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "write it as name"),
        ("vabal[vae.epochs=1", "write it as name"),
        ("vabal]vae.epochs=1[", "write it as name"),
        ("vabal[vae.epochs=1]x", "write it as name"),
        ("a=b=vabal", "write it as name"),
        ("label=", "write it as name"),
        ("=vabal", "label must be printable"),
        ("a/b=vabal", "label must be printable"),
        ("a\nb=vabal", "label must be printable"),
        (f"{'x' * 81}=vabal", "at most 80 characters"),
        ("vabal[probabilities.draws=7;probabilities.likelihood_reduction=standardised;vae.epochs=3]", "at most 80"),
        ("vabal[]", "write it as section.key=value"),
        ("vabal[vae.epochs]", "write it as section.key=value"),
        ("vabal[vae.epochs=]", "write it as section.key=value"),
        ("vabal[epochs=3]", "write it as section.key=value"),
        ("vabal[vae.epochs=1;]", "write it as section.key=value"),
        ("vabal[vea.epochs=1]", r"vea\.epochs is no setting that .* sections classifier,"),
        ("vabal[images.size=8]", r"images\.size is no setting that"),
        ("vabal[selection.budget=8]", r"selection\.budget is no setting that"),
        ("vabal[selection.strategy=random]", r"selection\.strategy is no setting that"),
        ("vabal[vae.epoch=1]", r"vae\.epoch: unknown setting"),
        ("vabal[vae.epochs=many]", r"vae\.epochs: input should be a valid integer, found 'many'"),
        ("vabal[vae.epochs=1;vae.epochs=2]", r"vae\.epochs stands there twice"),
        ("vabal[vae.epochs={]", r"vae\.epochs: '{' is no value in YAML"),
        ("nonsense", "there is no strategy 'nonsense'; installed are vabal, random"),
        ("x=nonsense[vae.epochs=1]", "there is no strategy 'nonsense'"),
    ],
)
def test_a_spec_that_cannot_be_read_is_one_clear_line(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse_variant(spec)
    assert "\n" not in str(error.value)


def test_a_label_of_80_characters_is_long_enough() -> None:
    assert parse_variant(f"{'x' * 80}=random").label == "x" * 80


def test_equal_labels_are_refused_and_equal_strategies_are_not() -> None:
    assert [item.label for item in parse_variants(["vabal", "short=vabal[vae.epochs=1]"])] == ["vabal", "short"]
    for specs in (["random", "random"], ["vabal", "vabal=random"], ["a=vabal", " a =vabal[vae.epochs=1]"]):
        with pytest.raises(UserError, match="twice"):
            parse_variants(specs)


def test_specs_are_split_at_the_commas_outside_brackets() -> None:
    assert split_specs("a, b[x.y=1,2;z.w=2],c") == ["a", "b[x.y=1,2;z.w=2]", "c"]
    assert split_specs("alone") == ["alone"]


@pytest.mark.parametrize("text", ["", "a,,b", "a,", ",a", "a[b", "a]b", "a[b[c]]", "a][b"])
def test_lists_of_specs_that_do_not_pair_or_lack_a_name_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="strategies "):
        split_specs(text)


# --- every protocol ---------------------------------------------------------------------------------------------------


@every_protocol
def test_every_protocols_settings_are_settings_for_every_strategy(protocol: Protocol) -> None:
    for variant in parse_variants(protocol.strategies):
        chosen = params.parse(params.override({}, {**protocol.settings, **variant.settings}))
        for path, value in {**protocol.settings, **variant.settings}.items():
            section, key = path.split(".")
            assert getattr(getattr(chosen, section), key) == value


@every_protocol
def test_every_protocols_imbalances_fit_its_classes(protocol: Protocol) -> None:
    for imbalance in protocol.imbalances:
        if imbalance is not None:
            assert set(Imbalance.parse(imbalance, NUM_CLASSES[kind_of(protocol)]).kept) - {1.0}


@every_protocol
def test_every_protocol_has_a_baseline_and_its_own_name(protocol: Protocol) -> None:
    assert PROTOCOLS[protocol.name] is protocols.get(protocol.name) is protocol
    assert "random" in protocol.strategies


def test_an_unknown_protocol_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(UserError, match=r"--protocol 'cifar': .* known are cifar10, cifar10-dominant, .*, elpv"):
        protocols.get("cifar")


def test_the_root_is_filled_in_where_a_source_has_a_place() -> None:
    assert protocols.get("cifar10").sources_in(Path("/my/data")) == ("cifar10:/my/data",)
    assert protocols.get("digits").sources_in(None) == ("digits",)
    with pytest.raises(UserError, match="needs --root DIR, where cifar100 lies"):
        protocols.get("cifar100").sources_in(None)
    with pytest.raises(UserError, match="takes no --root"):
        protocols.get("digits").sources_in("/my/data")


# --- the paper's numbers, by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trainings"),
    [
        ("cifar10", [500, 1000, 1500, 2000, 2500, 3000]),
        ("cifar10-dominant", [500, 1000, 1500, 2000, 2500, 3000]),
        ("cifar10-rare", [500, 1000, 1500, 2000, 2500, 3000]),
        ("cifar100", [1000, 2000, 3000, 4000, 5000]),
        ("cifar100-dominant", [1000, 2000, 3000, 4000, 5000]),
        ("neu", [250, 500, 750, 1000, 1250]),
        ("resnet34", [500, 1000, 1500, 2000, 2500, 3000]),
        ("budget-1000", [1000, 2000, 3000]),
        ("digits", [25, 50, 75, 100]),
        ("elpv", [50, 100, 150, 200]),
    ],
)
def test_rounds_train_on_the_papers_numbers_of_labels(name: str, trainings: list[int]) -> None:
    protocol = protocols.get(name)
    assert [protocol.initial + number * protocol.budget for number in range(protocol.rounds)] == trainings
    assert protocol.labeled == trainings[-1]


def test_the_recipe_is_the_papers() -> None:
    for name in ("cifar10", "cifar100", "neu", "table1", "lambda", "budget-250"):
        chosen = params.parse(params.override({}, dict(protocols.get(name).settings))).classifier
        assert (chosen.network, chosen.width, chosen.epochs, chosen.batch_size) == ("resnet18", 64, 200, 128)
        assert (chosen.learning_rate, chosen.momentum, chosen.weight_decay) == (0.1, 0.9, 0.0005)
        assert chosen.decay_at * chosen.epochs == 160
        assert chosen.learning_rate * chosen.decay_factor == pytest.approx(0.01)
        assert protocols.get(name).seeds == 3
    assert protocols.get("resnet34").settings["classifier.network"] == "resnet34"
    assert protocols.get("neu").holdout == 0.2


def test_imbalances_keep_what_the_paper_keeps() -> None:
    def kept(name: str, per_class: int, num_classes: int) -> list[int]:
        shares = [Imbalance.parse(str(spec), num_classes).kept for spec in protocols.get(name).imbalances]
        return [round(sum(share * per_class for share in each)) for each in shares]

    assert kept("cifar10-dominant", 5000, 10) == [5000 + 9 * 500] * 3
    assert kept("cifar10-rare", 5000, 10) == [9 * 5000 + 500] * 3
    assert kept("cifar100-dominant", 500, 100) == [11 * 500 + 89 * 300]
    dominant = Imbalance.parse("dominant:44-54:0.6", 100).kept
    assert [index for index, share in enumerate(dominant) if share == 1.0] == list(range(44, 55))


def test_table_1_switches_prior_and_precision() -> None:
    rows = {variant.label: variant.settings for variant in parse_variants(protocols.get("table1").strategies)}
    assert {
        label: (row["probabilities.use_prior"], row["probabilities.use_precision"])
        for label, row in rows.items()
        if label != "random"
    } == {"neither": (False, False), "prior": (True, False), "precision": (False, True), "both": (True, True)}


def test_table_2_and_lambda_change_one_setting_of_the_papers_preset() -> None:
    for name, path, values in (
        ("table2", "vae.energy", ["sigmoid", "absolute", "square"]),
        ("lambda", "vae.class_weight", [0, 0.0005, 0.005, 0.05, 0.5]),
    ):
        variants = parse_variants(protocols.get(name).strategies)[1:]
        assert [variant.settings[path] for variant in variants] == values
        assert all(set(item.settings) == {"method.preset", "vae.loss_reduction", path} for item in variants)
        assert {item.settings["method.preset"] for item in variants} == {"paper"}
        assert {item.settings["vae.loss_reduction"] for item in variants} == {"mean"}


def test_small_protocols_compare_every_strategy_that_is_built_in() -> None:
    built_in = {name for name in strategies.names() if type(strategies.get(name)).__module__.startswith("vabal.")}
    for name in ("digits", "elpv"):
        assert built_in | {"balanced:margin", "stochastic:margin"} <= set(protocols.get(name).strategies)


# --- the page ---------------------------------------------------------------------------------------------------------


def rows_of_the_page() -> dict[str, list[str]]:
    table = PAGE.partition("## All of them")[2].partition("\n*Rivals*")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row for row in rows}


def test_the_page_names_every_protocol_and_no_other() -> None:
    assert list(rows_of_the_page()) == list(PROTOCOLS)


@every_protocol
def test_the_pages_figures_are_the_protocols(protocol: Protocol) -> None:
    row = rows_of_the_page()[protocol.name]
    passes = protocol.settings["classifier.epochs"] * sum(
        protocol.initial + number * protocol.budget for number in range(protocol.rounds)
    )
    imbalances = ", ".join("none" if item is None else f"`{item}`" for item in protocol.imbalances)
    assert row[2:4] == [f"`{kind_of(protocol)}`", imbalances]
    assert row[5:7] == [str(protocol.seeds), str(protocol.rounds)]
    assert row[7] == f"{protocol.initial} … {protocol.labeled}"
    assert row[8:] == [str(protocol.budget), str(protocol.cells), f"{passes:,}".replace(",", " ")]


@every_protocol
def test_the_page_says_which_strategies_a_protocol_compares(protocol: Protocol) -> None:
    said, labels = rows_of_the_page()[protocol.name][4], [item.partition("=")[0] for item in protocol.strategies]
    if said in ("rivals", "all"):
        explained = re.search(r"\*Rivals\*: (.*?) \*All\*: (.*?)\.\n", PAGE, re.DOTALL)
        assert explained is not None
        named = explained[1 if said == "rivals" else 2]
        assert set(re.findall(r"`([a-z_:]+)`", named)) == set(labels)
    elif protocol.name == "lambda":
        assert said.endswith("λ of " + ", ".join(label.removeprefix("lambda-") for label in labels[1:]))
    elif kind_of(protocol) == "cifar10":
        assert re.findall(r"`(\w+)`", said) == labels


@every_protocol
def test_the_page_gives_the_command_line(protocol: Protocol) -> None:
    root = " --root DATA" if protocol.needs_root else ""
    assert f"\nvabal bench --protocol {protocol.name}{root} --out results/{protocol.name}\n" in PAGE
