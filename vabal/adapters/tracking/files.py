"""A version's files: the model's folder in MLflow's format, and the digests of what is in it."""

import importlib.metadata
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

import vabal
from vabal.files import file_sha256

with warnings.catch_warnings():
    # MLflow warns about type hints of its own (message "Any type hint is inferred as AnyType ...")
    warnings.filterwarnings("ignore", message=".*Any type hint", category=UserWarning)
    import mlflow.artifacts
    import mlflow.pyfunc

MODEL_FOLDER = "model"
SERVING_SOURCE = Path(vabal.__file__).parent / "adapters" / "serving.py"
NETWORK_SOURCE = Path(vabal.__file__).parent / "learning" / "network.py"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "torch", "torchvision")


def save_model(
    folder: Path, run_id: str, weights: Path, network: Path, about: bytes, programs: Sequence[Path] = ()
) -> Path:
    """The model's folder in MLflow's format, from `serving.py`, the network's source, the weights and the classes.

    `programs` are those of a pretrained backbone.
    """
    parts = folder / "parts"
    parts.mkdir()
    shutil.copyfile(weights, parts / "weights.safetensors")
    shutil.copyfile(network, parts / "network.py")
    (parts / "classes.json").write_bytes(about)
    for program in programs:
        shutil.copyfile(program, parts / program.name)
    # No input schema: MLflow's enforces one rank and one dtype, and both grey NxHxW and colour NxHxWx3 are welcome.
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "class")]
    outputs += [ColSpec(DataType.float, f"p_{name}") for name in json.loads(about)["classes"]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
        mlflow.pyfunc.save_model(
            path=str(folder / MODEL_FOLDER),
            python_model=str(SERVING_SOURCE),
            artifacts={path.stem: str(path) for path in sorted(parts.iterdir())},
            signature=ModelSignature(outputs=Schema(outputs)),
            # Given, for MLflow would load the model in a process of its own to find them out
            pip_requirements=[f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS],
            mlflow_model=Model(run_id=run_id, artifact_path=MODEL_FOLDER),
        )
    return folder / MODEL_FOLDER


def download(source: str, folder: Path, uri: str) -> Path:
    """The model's folder, downloaded into `folder` from where the server `uri` keeps it. Raises MlflowException."""
    return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=uri))


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a model's folder, by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
