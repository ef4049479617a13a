"""CIFAR's published batches (the folders that torchvision downloads), read as data: nothing in them is executed.

The batches are Python pickles, and a pickle can run any code when it is loaded. So they are not loaded: their opcodes
are read one by one, and only those that build numbers, texts, lists, dictionaries and numpy arrays are understood.
torchvision's MD5 check is not needed for that; what was read is told apart by the digests in round 0's manifest.
"""

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vabal.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Which files hold a data set, and under which keys."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names_key: str
    labels_key: str


LAYOUTS: Final = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "label_names",
        "labels",
    ),
    "cifar100": Layout("cifar-100-python", ("train",), ("test",), "meta", "fine_label_names", "fine_labels"),
}


def folder_of(layout: Layout, root: Path) -> Path:
    """The folder with the batches: `root` itself or the folder of that name in it. Raises UserError if files lack."""
    folder = root if (root / layout.meta).is_file() else root / layout.folder
    missing = [name for name in (layout.meta, *layout.train, *layout.test) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} missing; unpack the data set's python version into {root}")
    return folder


def class_names(layout: Layout, folder: Path) -> tuple[str, ...]:
    """The class names in index order. Raises UserError if the file is not what it should be."""
    names = _entry(folder / layout.meta, layout.names_key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{folder / layout.meta}: {layout.names_key} is no list of names")
    return tuple(names)


def batches(layout: Layout, folder: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images_N_H_W_K uint8 of 32 x 32 x 3, labels_N int64) of each file of the split, "train" or "test"."""
    for name in layout.train if split == "train" else layout.test:
        path = folder / name
        values, labels = _entry(path, "data"), np.asarray(_entry(path, layout.labels_key))
        if not isinstance(values, np.ndarray) or values.dtype != np.uint8 or values.shape[1:] != (3 * 32 * 32,):
            raise UserError(f"{path}: data is no uint8 array of N x 3072 pixels")
        if labels.shape != values.shape[:1] or labels.dtype.kind != "i":
            raise UserError(f"{path}: {layout.labels_key} does not hold one whole number an image")
        yield values.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)


def _entry(path: Path, key: str) -> Any:
    content = read_plain_pickle(path)
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{path}: no entry {key!r}, so this is not a batch of the data set")
    return content[key]


# --- the reader -------------------------------------------------------------------------------------------------------

_MARK: Final = object()
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS: Final = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TEXTS: Final = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_VALUES: Final = _NUMBERS | _TEXTS | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(path: Path) -> Any:
    """The numbers, texts, lists, dictionaries and numpy arrays in a pickle of protocol 2 to 4; runs none of it.

    Texts of Python 2 are read as Latin-1. Raises UserError if the file holds anything else, or is cut.
    """
    try:
        with path.open("rb") as file:
            return _Reader().read(file)
    except _NotPlain as error:
        raise UserError(f"{path}: {error}; only plain numbers, texts and arrays are read") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: damaged: {' '.join(str(error).split())[:200]}") from None


class _NotPlain(Exception):  # noqa: N818
    """An opcode or a name that builds more than data."""


@dataclass
class _Array:
    """A numpy array that is being built: pickle makes it empty first and fills it after."""

    value: np.ndarray | None = None

    def fill(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        content = content.encode("latin-1") if isinstance(content, str) else content
        self.value = np.frombuffer(content, dtype=dtype.value).reshape(shape, order="F" if by_columns else "C")


@dataclass
class _Dtype:
    value: np.dtype[Any]

    def fill(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _make_dtype(code: str, *_: Any) -> _Dtype:
    dtype = np.dtype(code)
    if dtype.kind not in "buif":
        raise _NotPlain(f"an array of {code!r}")
    return _Dtype(dtype)


_BUILDERS: Final[dict[str, Any]] = {
    "numpy.core.multiarray _reconstruct": lambda *_: _Array(),
    "numpy._core.multiarray _reconstruct": lambda *_: _Array(),
    "numpy dtype": _make_dtype,
    "_codecs encode": lambda text, *_: text.encode("latin-1"),
}
_NAMES: Final = {*_BUILDERS, "numpy ndarray"}


class _Reader:
    """A stack machine for the part of pickle that makes data."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, file: Any) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return _finished(self._stack.pop())
            self._step(opcode.name, argument)
        raise ValueError("the file ends early")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[len(stack) - count :] = [tuple(stack[len(stack) - count :])]
        elif name in ("PROTO", "FRAME"):
            return
        elif name == "MARK":
            stack.append(_MARK)
        elif name.endswith("PUT") or name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(self._memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._name(argument)
        else:
            self._build(name)

    def _name(self, argument: str | None) -> None:
        if argument is None:
            attribute, module = self._stack.pop(), self._stack.pop()
            argument = f"{module} {attribute}"
        if argument not in _NAMES:
            raise _NotPlain(f"refers to {argument.replace(' ', '.')}")
        self._stack.append(argument)

    def _build(self, name: str) -> None:
        stack = self._stack
        if name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("DICT", "LIST", "TUPLE"):
            values = self._since_mark()
            stack.append(_pairs(values) if name == "DICT" else tuple(values) if name == "TUPLE" else values)
        elif name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else self._since_mark()
            stack[-1].extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            stack[-1].update(_pairs(values))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_BUILDERS[stack.pop()](*arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Array | _Dtype):
                raise _NotPlain(f"sets the state of a {type(stack[-1]).__name__}")
            stack[-1].fill(state)
        else:
            raise _NotPlain(f"holds the opcode {name}")

    def _since_mark(self) -> list[Any]:
        last = len(self._stack) - 1 - next(i for i, value in enumerate(reversed(self._stack)) if value is _MARK)
        values = self._stack[last + 1 :]
        del self._stack[last:]
        return values


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))


def _finished(value: Any) -> Any:
    """Arrays in the place of those that were being built."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _finished(item) for key, item in value.items()}
    return value
