"""The model that travels with every registered version: a script for MLflow's models-from-code.

It is copied into the version and runs where it is loaded, with mlflow, numpy, pandas, pillow, torch and torchvision,
and without vabal, timm or safetensors: the network's source and its weights lie beside it, and a pretrained backbone
as exported programs. Preprocessing is inside.

    model = mlflow.pyfunc.load_model("models:/vabal-classifier/3")     # model_config={"device": "cuda"} for a GPU
    model.predict(images)  ->  DataFrame: `class`, then one probability a class, `p_<class name>`, in index order

`images` is a uint8 array, NxHxW (grey), NxHxWx1 or NxHxWx3, of any size, or a list of HxW, HxWx1 or HxWx3 arrays of
different sizes. Grey and colour are converted and sizes brought to the training size as in training.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from PIL import Image
from torch.export.passes import move_to_device_pass

BATCH = 256


class ImageClassifier(PythonModel):
    """Class names and probabilities from raw images."""

    def load_context(self, context: Any) -> None:
        """Read the weights, on CPU unless `model_config` names another device. Raises if they are not those logged."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        about = json.loads(files["classes"].read_text(encoding="utf-8"))
        if hashlib.sha256(files["weights"].read_bytes()).hexdigest() != about["weights_sha256"]:
            raise MlflowException("weights.safetensors is not the file that was logged (its SHA-256 differs)")
        self.classes: list[str] = about["classes"]
        self.size: int = about["image_size"]
        self.channels: int = about["channels"]
        self.device = torch.device((context.model_config or {}).get("device", "cpu"))
        source = _module(files["network"])

        def trunk(size: int) -> Any:
            program = torch.export.load(files[f"trunk-{size}"])
            return move_to_device_pass(program, self.device).module()

        network = source.read_weights(files["weights"], lambda backbone: trunk(backbone["sizes"][0]))
        self.network = network.eval().to(self.device)
        probes = isinstance(network, source.LinearProbe)
        self.embed = _embedding(source, network.config["backbone"], trunk) if probes else None

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """`class` and `p_<class name>` for every image. Raises MlflowException naming what is wrong with the input."""
        images = (prepare(image, self.size, self.channels) for image in _images(model_input))
        parts = [self._probabilities(batch) for batch in iter(lambda: list(islice(images, BATCH)), [])]
        probabilities_N_C = np.concatenate(parts) if parts else np.empty((0, len(self.classes)), np.float32)
        table = pd.DataFrame(probabilities_N_C, columns=[f"p_{name}" for name in self.classes])
        table.insert(0, "class", [self.classes[index] for index in probabilities_N_C.argmax(axis=1)])
        return table

    def _probabilities(self, images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        images_N_K_H_W = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()).to(self.device)
        with torch.inference_mode():
            logits_N_C = self.network(self.embed(images_N_K_H_W) if self.embed else images_N_K_H_W)
            probabilities_N_C: npt.NDArray[np.float32] = logits_N_C.softmax(dim=1).cpu().numpy()
        return probabilities_N_C


def _embedding(
    source: ModuleType, backbone: dict[str, Any], trunk: Callable[[int], Any]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a probe sees of the images: what the exported backbone says of them."""
    names = ("sizes", "views", "mean", "std", "interpolation", "pixels")
    prepared = {name: backbone[name] for name in names if name in backbone}
    return partial(source.embed, trunks=[trunk(size) for size in prepared["sizes"]], **prepared)


def prepare(image: npt.NDArray[np.uint8], size: int, channels: int) -> npt.NDArray[np.uint8]:
    """One image as the network was trained on: size x size x channels uint8, resized bilinearly by Pillow."""
    mode = "L" if channels == 1 else "RGB"
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(image))
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(picture, dtype=np.uint8).reshape(size, size, channels)


def _images(model_input: Any) -> Iterator[npt.NDArray[np.uint8]]:
    if isinstance(model_input, np.ndarray) and model_input.dtype != object:
        if model_input.ndim not in (3, 4):
            raise _wrong(f"an array of {model_input.ndim} axes", "for a single image write images[None]")
        if model_input.ndim == 4 and model_input.shape[3] not in (1, 3):
            raise _wrong(f"{model_input.shape[3]} channels on the last axis", "the channels come last: 1 or 3")
    elif not isinstance(model_input, (list, tuple, np.ndarray)):
        raise _wrong(type(model_input).__name__, "pass a numpy array or a list of them")
    for image in model_input:
        yield _uint8(np.asarray(image))


def _uint8(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or image.size == 0:
        raise _wrong(f"an image of shape {image.shape}", "it must be HxW, HxWx1 or HxWx3 and not empty")
    if image.dtype == np.uint8:
        return image
    # JSON knows no uint8, so requests to a model server arrive as wider integers
    if not np.issubdtype(image.dtype, np.integer):
        raise _wrong(f"dtype {image.dtype}", "pass raw uint8 pixels 0..255, neither scaled nor normalised")
    if image.min() < 0 or image.max() > 255:
        raise _wrong(f"values from {image.min()} to {image.max()}", "pixels must lie in 0..255")
    return image.astype(np.uint8)


def _wrong(found: str, mend: str) -> MlflowException:
    return MlflowException(
        f"images must be uint8, NxHxW, NxHxWx1 or NxHxWx3 (or a list of single ones); found {found}: {mend}",
        error_code=INVALID_PARAMETER_VALUE,
    )


def _module(source: Path) -> ModuleType:
    """The network's source as a module of its own, whatever is installed here."""
    spec = importlib.util.spec_from_file_location("vabal_network", source)
    if spec is None or spec.loader is None:
        raise MlflowException(f"{source} is no Python source")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(ImageClassifier())
