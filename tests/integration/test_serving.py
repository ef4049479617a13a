"""A registered version loads where neither vabal nor safetensors is installed, and predicts what our own code does."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support.small_backbones import small_backbone
from vabal import images
from vabal.adapters.tracking import SERVING_SOURCE, Tracking
from vabal.images import shards
from vabal.learning import classifier, finetune, probe
from vabal.learning.embeddings import Embedder
from vabal.learning.finetune import LabelledImages
from vabal.learning.network import FineTuned, ResNetClassifier
from vabal.learning.probe import LabelledEmbeddings
from vabal.promotion.registered import classes_json
from vabal.settings.learners import BackboneSettings, ClassifierSettings, FineTuneSettings

CLASSES = ["crack", "dust (light)", "good"]
KEY = "e" * 64

# Runs apart from the repository: isolated from the environment and the user's site, and what is not to be there is not.
STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("vabal", "flows", "safetensors", "timm"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
import mlflow, numpy
uri, source, target, *models = sys.argv[1:]
mlflow.set_tracking_uri(uri)
for number, model in enumerate(models):
    loaded = mlflow.pyfunc.load_model(model)
    for name, array in numpy.load(source).items():
        loaded.predict(array).to_parquet(f"{target}/{number}-{name}.parquet")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def network_of(channels: int, size: int = 16) -> Any:
    settings = ClassifierSettings(width=4)
    mean, std = (110.0,) * channels, (60.0,) * channels
    return classifier.build(
        settings, num_classes=3, image_size=size, channels=channels, mean=mean, std=std, seed=channels
    )


def registered(uri: str, folder: Path, channels: int, size: int = 16) -> tuple[str, Any]:
    """The address of a version with random weights, and the same network here."""
    network = network_of(channels, size)
    classifier.save(network, folder / "weights.safetensors")
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    tracking = Tracking(f"s-{name}", uri)
    run_id = tracking.open_round(channels, KEY, {})
    version = tracking.register(
        run_id,
        channels,
        KEY,
        weights=folder / "weights.safetensors",
        classes=CLASSES,
        image_size=size,
        channels=channels,
    )
    return f"models:/{tracking.model_name}/{version.version}", network


def registered_probe(uri: str, folder: Path) -> tuple[str, Any]:
    """The address of a version that is a probe on two sizes of the embedded backbone, each seen in its own views, and
    on the pixels, and the same predictor here."""
    settings = BackboneSettings(sizes=[32, 16], views=["mirrored", "plain"], pixels=8)
    embedder = Embedder(settings, "cpu", folder / "embeddings")
    embedded = embedder.embedded
    draw = np.random.default_rng(0)
    known = LabelledEmbeddings(
        embedder.embed(draw.integers(0, 256, (20, 16, 16, 1), dtype=np.uint8)),
        np.arange(20) % 3,
        [*"abcdefghijklmnopqrst"],
    )
    network, training = probe.fit(known, embedded, 3, ClassifierSettings(learner="probe", layers="all"), seed=0)
    list(training)
    (folder / "probe").mkdir()
    weights = folder / "probe" / "weights.safetensors"
    classifier.save(network, weights)
    tracking = Tracking("s-probe", uri)
    version = tracking.register(
        tracking.open_round(7, KEY, {}),
        7,
        KEY,
        weights=weights,
        classes=CLASSES,
        image_size=16,
        channels=1,
        programs=embedder.programs(),
    )
    loaded = classifier.load(weights)
    return f"models:/{tracking.model_name}/{version.version}", lambda pixels: classifier.predict(
        loaded, [embedder.embed(pixels)]
    )


def registered_fine_tuned(uri: str, folder: Path) -> tuple[str, Any]:
    """The address of a version that is a fine-tuned backbone, and the same network here."""
    (folder / "finetune").mkdir()
    backbone = BackboneSettings.model_validate(small_backbone(folder / "finetune"))
    recipe = finetune.Recipe(
        ClassifierSettings(learner="finetune"), FineTuneSettings(epochs=1, min_steps=2), backbone, torch.device("cpu")
    )
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    known = LabelledImages(images, np.arange(20) % 3, [*"abcdefghijklmnopqrst"])
    network, training = finetune.fit(known, 3, recipe, seed=0)
    list(training)
    weights = folder / "finetune" / "weights.safetensors"
    classifier.save(network, weights)
    tracking = Tracking("s-finetune", uri)
    version = tracking.register(
        tracking.open_round(8, KEY, {}),
        8,
        KEY,
        weights=weights,
        classes=CLASSES,
        image_size=16,
        channels=3,
        programs=Embedder(backbone, "cpu", folder / "embeddings").programs(),
    )
    return f"models:/{tracking.model_name}/{version.version}", classifier.load(weights)


def own_predictions(network: Any, raw: np.ndarray, channels: int, size: int = 16) -> np.ndarray:
    """Probabilities by the path that a round takes: encoded images, decoded and resized, through the classifier."""
    decoded = np.stack([images.decode(shards.png(image), size, channels) for image in raw])
    if isinstance(network, ResNetClassifier | FineTuned):
        return classifier.predict(network, [decoded])
    predicted: np.ndarray = network(decoded)
    return predicted


def test_versions_predict_what_we_predict_in_a_process_without_our_package(mlflow_uri: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    inputs = {
        "grey": generator.integers(0, 256, (300, 16, 16), dtype=np.uint8),
        "grey_with_axis": generator.integers(0, 256, (3, 16, 16, 1), dtype=np.uint8),
        "colour": generator.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8),
        "larger": generator.integers(0, 256, (3, 150, 97, 3), dtype=np.uint8),
        "smaller": generator.integers(0, 256, (3, 5, 7), dtype=np.uint8),
    }
    np.savez(tmp_path / "inputs.npz", **inputs)  # type: ignore[arg-type]
    models, networks = zip(*(registered(mlflow_uri, tmp_path, channels) for channels in (1, 3)), strict=True)
    others = [registered_probe(mlflow_uri, tmp_path), registered_fine_tuned(mlflow_uri, tmp_path)]
    models, networks = zip(*[*zip(models, networks, strict=True), *others], strict=True)
    command = [sys.executable, "-I", "-c", STRANGER, mlflow_uri, str(tmp_path / "inputs.npz"), str(tmp_path), *models]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"vabal", "safetensors", "timm"} & set(json.loads(done.stdout.splitlines()[-1]))
    for number, channels in enumerate((1, 3, 1, 3)):  # two networks, the probe, the backbone
        for name, raw in inputs.items():
            table = pd.read_parquet(tmp_path / f"{number}-{name}.parquet")
            assert list(table.columns) == ["class", "p_crack", "p_dust (light)", "p_good"]
            expected_N_C = own_predictions(networks[number], raw, channels)
            np.testing.assert_allclose(table.iloc[:, 1:].to_numpy(), expected_N_C, atol=1e-5, rtol=0)
            assert list(table["class"]) == [CLASSES[index] for index in expected_N_C.argmax(axis=1)]


# -- in this process, without a server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A grey model in MLflow's format, loaded from its folder."""
    import mlflow.pyfunc

    from vabal.adapters.tracking import files

    folder = tmp_path_factory.mktemp("model")
    classifier.save(network_of(1), folder / "weights.safetensors")
    sha256 = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    about = classes_json(CLASSES, 16, 1, sha256)
    path = files.save_model(folder, "0" * 32, folder / "weights.safetensors", files.NETWORK_SOURCE, about)
    return mlflow.pyfunc.load_model(str(path))


def test_a_list_of_images_of_different_sizes_is_taken(model: Any) -> None:
    generator = np.random.default_rng(0)
    shapes = [(16, 16), (20, 9, 3), (40, 41, 1)]
    raw = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    expected_N_C = np.concatenate([own_predictions(network_of(1), image[None], 1) for image in raw])
    np.testing.assert_allclose(model.predict(raw).iloc[:, 1:].to_numpy(), expected_N_C, atol=1e-6, rtol=0)


def test_integers_from_json_count_as_pixels(model: Any) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    pd.testing.assert_frame_equal(model.predict(raw.astype(np.int64)), model.predict(raw))


def test_no_images_give_an_empty_table_with_the_same_columns(model: Any) -> None:
    table = model.predict(np.empty((0, 16, 16), np.uint8))
    assert len(table) == 0
    assert list(table.columns) == ["class", *(f"p_{name}" for name in CLASSES)]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (np.zeros((2, 16, 16), np.float32), "found dtype float32: pass raw uint8 pixels"),
        (np.full((2, 16, 16), 300), "found values from 300 to 300"),
        (np.full((2, 16, 16), -1), "pixels must lie in 0..255"),
        (np.zeros((16, 16), np.uint8), r"for a single image write images\[None\]"),
        (np.zeros((2, 3, 16, 16), np.uint8), "the channels come last"),
        (np.zeros((2, 16, 16, 4), np.uint8), "found 4 channels"),
        (np.zeros((2, 0, 16), np.uint8), "not empty"),
        ([np.zeros(16, np.uint8)], r"an image of shape \(16,\)"),
        (pd.DataFrame({"image": [1]}), "found DataFrame"),
    ],
)
def test_input_that_is_no_raw_images_is_refused_in_one_line_that_says_what_is_wrong(
    model: Any, wrong: Any, told: str
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=told) as error:
        model.predict(wrong)
    assert "\n" not in str(error.value)
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_signature_names_the_columns_and_leaves_the_shape_open(model: Any) -> None:
    signature = model.metadata.signature
    assert signature.inputs is None
    assert signature.outputs.input_names() == ["class", *(f"p_{name}" for name in CLASSES)]


def test_requirements_are_what_the_script_imports_and_not_this_package(model: Any) -> None:
    lines = (_folder(model) / "requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in lines}
    assert names == {"mlflow", "numpy", "pandas", "pillow", "torch", "torchvision"}


def test_weights_that_were_exchanged_are_not_served(model: Any) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    path = _folder(model) / "artifacts" / "weights.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(MlflowException, match="SHA-256 differs"):
            mlflow.pyfunc.load_model(str(_folder(model)))
    finally:
        path.write_bytes(before)


def test_the_script_imports_nothing_of_this_package() -> None:
    source = SERVING_SOURCE.read_text(encoding="utf-8")
    assert "import vabal" not in source
    assert "from vabal" not in source


def test_a_version_is_registered_with_less_than_two_seconds_of_computing(mlflow_uri: str, tmp_path: Path) -> None:
    registered(mlflow_uri, tmp_path, 1)
    network = network_of(1)
    classifier.save(network, tmp_path / "again.safetensors")
    tracking = Tracking("timed", mlflow_uri)
    run_id = tracking.open_round(1, KEY, {})
    start = time.process_time()
    tracking.register(
        run_id, 1, KEY, weights=tmp_path / "again.safetensors", classes=CLASSES, image_size=16, channels=1
    )
    assert time.process_time() - start < 2


def _folder(model: Any) -> Path:
    return Path(model._model_impl.context.artifacts["weights"]).parents[1]
