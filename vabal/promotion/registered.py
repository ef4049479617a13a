"""Is a registered version what its round recorded? Asked of the bytes that would be loaded, before an alias moves.

A round's manifest names the sha256 of every file of the model that it registered. Rounds of earlier versions named the
weights alone: then the serving code must be some that was published, and the classes those that the workspace had.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from vabal import rounds
from vabal.errors import UserError
from vabal.files import sha256
from vabal.pools import read_classes
from vabal.rounds.manifests import ModelRecord

WEIGHTS_FILE, CLASSES_FILE = "artifacts/weights.safetensors", "artifacts/classes.json"
# What models consist of that were registered before rounds recorded it: the code that was shipped until then.
_CODE = {
    "serving.py": {"49ac822da762e242fcd7f8ee36513dafdf3ba9930008082933403812950ba431"},  # pragma: allowlist secret
    "artifacts/network.py": {
        "314e9a2797914956f6becc5637597b071fdc1e65366b186d638400f0e0c66aa2",  # pragma: allowlist secret
        "650d898f5bb306148b9b7cec1850b66322b170f042106294b2289a72228fb5e9",  # pragma: allowlist secret
        "6008ecf8bc548a9b9845eb27a3e8f75ab305f6293bd47532861256d7925a72ad",  # pragma: allowlist secret
    },
}
_UNKNOWN = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}  # their digests were not recorded


class OtherBytes(UserError):  # noqa: N818  # an answer, as much as an error
    """What loading the version would read is not what its round recorded."""


class Registered(Protocol):
    """What a registered version tells of itself."""

    @property
    def version(self) -> str: ...
    @property
    def round(self) -> int: ...
    @property
    def weights_sha256(self) -> str: ...


class Files(Protocol):
    """What is needed of `adapters.tracking`."""

    def files(self, version: str) -> Mapping[str, str]: ...


def classes_json(classes: list[str], image_size: int, channels: int, weights_sha256: str) -> bytes:
    """What a version's `classes.json` holds."""
    about = {"classes": classes, "image_size": image_size, "channels": channels, "weights_sha256": weights_sha256}
    return (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def recorded_model(data: Path, version: Registered) -> ModelRecord:
    """What the manifest of the version's round says of its model. Raises UserError if that is another version."""
    model = rounds.read_manifest(data, version.round).model or ModelRecord()
    if model.version != version.version:
        raise OtherBytes(
            f"version {version.version} says that round {version.round} made it, which registered version "
            f"{model.version}: a copy of it is no candidate"
        )
    if model.sha256 != version.weights_sha256:
        raise UserError(
            f"version {version.version} says that round {version.round} made it, but the weights differ from those "
            "that the round's manifest names: another workspace's, or tampered with"
        )
    return model


def require_recorded_bytes(data: Path, registry: Files, version: Registered) -> tuple[str, ...]:
    """Raises OtherBytes, naming a file, unless all that loading the version reads is what its round recorded.

    Returns what is to tell: of a version whose round recorded the weights alone, what could not be compared.
    """
    model = recorded_model(data, version)
    found = registry.files(version.version)
    expected = model.files
    allowed = {name: {sha256} for name, sha256 in expected.items()} if expected else _allowed(data, version, found)
    odd = sorted(name for name in allowed.keys() | found.keys() if found.get(name) not in allowed.get(name, ()))
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise OtherBytes(
            f"version {version.version} in MLflow is not what round {version.round} registered: {odd[0]}{more} "
            f"{'was changed or added' if odd[0] in found else 'is missing'}; restore its files, or `vabal rollback`"
        )
    if expected:
        return ()
    left_out = ", ".join(sorted(_UNKNOWN & found.keys()))
    return (f"round {version.round} recorded no digest of version {version.version}'s {left_out}: not compared",)


def _allowed(data: Path, version: Registered, found: Mapping[str, str]) -> dict[str, set[str]]:
    """The digests that each file may have, of a version whose round recorded the weights alone."""
    images = rounds.read_manifest(data, version.round).settings["images"]
    classes = read_classes(data, version.round).names
    about = classes_json(list(classes), images["size"], images["channels"], version.weights_sha256)
    known = {WEIGHTS_FILE: {version.weights_sha256}, CLASSES_FILE: {sha256(about)}}
    return _CODE | known | {name: {found[name]} for name in _UNKNOWN & found.keys()}
