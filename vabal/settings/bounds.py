"""How large and how deep what is handed in may be: looked at before it is unpacked, refused in one line beyond."""

import json
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from vabal.errors import UserError

MIB: Final = 1 << 20
SETTINGS_BYTES: Final = MIB
SETTINGS_NODES: Final = 10_000  # with every alias written out
LABELS_BYTES: Final = 1024 * MIB
NPZ_BYTES: Final = 16 * 1024 * MIB  # unpacked, all arrays together
NPZ_RATIO: Final = 200  # unpacked to packed, of what unpacks to more than NPZ_SMALL
NPZ_SMALL: Final = 256 * MIB


def read_file(path: Path, most: int) -> bytes:
    """A file's bytes. Raises UserError if there are more than `most`, OSError as reading does."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: larger than {most // MIB} MiB, the most that is read: split it")
    return content


def parse_json(text: str | bytes) -> Any:
    """What JSON holds. Raises ValueError if it is none, or nested deeper than Python can follow."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_yaml(node: yaml.Node | None) -> None:
    """Raises yaml.YAMLError if a document with every alias written out is too large, or holds itself."""
    sizes: dict[int, int] = {}

    def size(item: yaml.Node) -> int:
        if id(item) in sizes:
            return sizes[id(item)]
        sizes[id(item)] = SETTINGS_NODES + 1  # while it is open: an alias of itself has no end
        inner = item.value if isinstance(item, yaml.CollectionNode) else []
        parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        sizes[id(item)] = min(1 + sum(map(size, parts)), SETTINGS_NODES + 1)
        return sizes[id(item)]

    if node is not None and size(node) > SETTINGS_NODES:
        raise yaml.YAMLError(f"more than {SETTINGS_NODES} values, with its aliases written out")


def check_npz(path: Path, names: tuple[str, ...]) -> None:
    """Raises UserError if the arrays of these names would unpack to too much. Reads the file's headers alone."""
    with zipfile.ZipFile(path) as archive:
        members = [item for item in archive.infolist() if item.filename.removesuffix(".npy") in names]
        unpacked = sum(item.file_size for item in members)
        packed = sum(item.compress_size for item in members)
        for item in members:
            with archive.open(item) as stream:
                unpacked = max(unpacked, _promised(stream))
    if unpacked > NPZ_BYTES:
        said = f"unpacks to {unpacked / (1024 * MIB):.3g} GiB, more than {NPZ_BYTES // (1024 * MIB)}: split it"
    elif unpacked > NPZ_SMALL and unpacked > NPZ_RATIO * packed:
        said = f"unpacks to more than {NPZ_RATIO} times its size: save it with numpy.savez, which does not pack"
    else:
        return
    raise UserError(f"{path}: {said}")


def _promised(stream: Any) -> int:
    """How many bytes an array's header promises."""
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    size = int(dtype.itemsize)
    for length in shape:
        size *= int(length)
    return size


def shown(value: object, most: int = 100) -> str:
    """A value for a message, cut short; one that Python will not write out is named by its kind."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[:most]}..."
