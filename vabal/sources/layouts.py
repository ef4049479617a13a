"""What the names of a source's folders mean: classes, splits, or places that say nothing of a class.

Only names and counts are looked at, so that a decision can be told before anything is read or written. Where two
readings are likely, neither is taken: the error names both, and the option that settles it.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from vabal.errors import UserError, shown, some
from vabal.sources.folder_names import Split, is_split, is_unlabelled, look_like, named, split_roles
from vabal.sources.folders import class_name

CLASS_FOLDERS: Final = "class-folders"
PARENT_FOLDERS: Final = "parent-folders"
SPLITS: Final = "splits"
FLAT: Final = "flat"
LAYOUTS: Final = {
    CLASS_FOLDERS: "the first folder of an image is its class",
    PARENT_FOLDERS: "the folder that an image lies in is its class",
    SPLITS: "train and test folders; below them, the first folder of an image is its class",
    FLAT: "folders say nothing of an image's class",
}


@dataclass(frozen=True)
class Place:
    """What an image's folders say of it."""

    label: str | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Reading:
    """How a source's folders are read.

    `depth` folders lie around everything. `named` are the folders below them that count (classes, or
    splits with their roles); images in others are left out. `notes` tell people what is not plain.
    """

    layout: str
    depth: int = 0
    named: Mapping[str, Split | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def place(self, path: PurePosixPath) -> Place | None:
        """What the folders of an image say of it; None where they leave it out."""
        folders = path.parts[self.depth : -1]
        if self.layout == FLAT:
            return Place()
        if self.layout == SPLITS:
            if folders and is_unlabelled(folders[0]):
                return Place(split="pool")
            if not folders or folders[0] not in self.named:
                return None
            return Place(_label(folders[1:2]), self.named[folders[0]])
        if self.layout == PARENT_FOLDERS:
            folders = folders[-1:]
        if not folders or is_unlabelled(folders[0]):
            return Place()
        return Place(_label(folders)) if folders[0] in self.named else None


def _are_strays(outside: int, inside: int) -> bool:
    """Whether images outside the folders are so few that they do not put the folders' meaning in doubt."""
    return outside <= max(1, inside // 10)


def _label(folders: Sequence[str]) -> str | None:
    return class_name(folders[0]) if folders and not is_unlabelled(folders[0]) else None


class _Tree:
    """Images by their first folder, below those that lie around all of them. `direct` images lie on top."""

    def __init__(self, images: Sequence[PurePosixPath], kept: Sequence[str] | None) -> None:
        self.images = images
        self.depth = 0
        while self._is_wrapped(kept or ()):
            self.depth += 1
        self.counts = Counter(path.parts[self.depth] for path in images if self._depth_of(path) > 0)
        self.direct = [path for path in images if self._depth_of(path) <= 0]
        self.names = sorted(name for name in self.counts if not is_unlabelled(name))

    def _depth_of(self, path: PurePosixPath) -> int:
        return len(path.parts) - 1 - self.depth

    def _is_wrapped(self, kept: Sequence[str]) -> bool:
        """Whether one folder holds everything, and has folders of its own: it cannot be the only class."""
        tops = {path.parts[self.depth] for path in self.images if self._depth_of(path) > 0}
        inside = sum(self._depth_of(path) > 1 for path in self.images)
        strays = len(self.images) - inside
        return (
            len(tops) == 1 and inside > 0 and _are_strays(strays, inside) and class_name(next(iter(tops))) not in kept
        )

    @property
    def around(self) -> str:
        deepest = max(self.images, key=lambda path: len(path.parts))
        return "/".join(map(shown, deepest.parts[: self.depth]))

    def below(self, name: str) -> set[str]:
        """The folders in a folder; "" for images directly in it."""
        here = [path.parts[self.depth + 1 :] for path in self.images if self._in(path, name)]
        return {parts[0] if len(parts) > 1 else "" for parts in here}

    def _in(self, path: PurePosixPath, name: str) -> bool:
        return self._depth_of(path) > 0 and path.parts[self.depth] == name


def read_folders(
    root: str, images: Sequence[PurePosixPath], classes: Sequence[str] | None = None, layout: str | None = None
) -> Reading:
    """How the folders of these images are to be read, given the classes and the layout that the user named, if any.

    Raises UserError where that is ambiguous, naming the options, or where classes and folders do not go together.
    """
    if layout == FLAT:
        return Reading(FLAT)
    if layout == PARENT_FOLDERS:
        return _by_parents(root, images, classes)
    tree = _Tree(images, classes)
    if layout == SPLITS:
        return _by_splits(root, tree, classes)
    if layout is None:
        if not tree.names or _are_places(root, tree, classes):
            return Reading(FLAT, notes=_not_classes(tree))
        if not classes:
            _refuse_ambiguous(root, tree)
    return _by_class_folders(root, tree, classes, chosen=layout is not None)


def _by_class_folders(root: str, tree: _Tree, classes: Sequence[str] | None, *, chosen: bool) -> Reading:
    names = [name for name in tree.names if not (chosen and classes) or class_name(name) in (classes or ())]
    if not names:
        folders = f"its folders are {named(tree.names)}" if tree.names else "no image in it lies in a folder"
        raise UserError(f"{root}: --layout {CLASS_FOLDERS}: no folder of a class: {folders}")
    notes = [f"the classes are the folders in {tree.around}"] if tree.depth else []
    nested = [name for name in names if tree.below(name) - {""}]
    if nested:
        notes.append(
            f"folders inside {some([shown(name) for name in nested])} say nothing: the first folder is the class"
        )
    if tree.direct:
        count = f"{len(tree.direct)} image" + "s" * (len(tree.direct) > 1)
        said = some([shown(path) for path in tree.direct])
        notes.append(f"{count} outside the class folders, without a label: {said}")
    left = [f"{shown(name)} ({tree.counts[name]})" for name in tree.names if name not in names]
    if left:
        notes.append(f"left out, folders that --classes does not name (images): {some(left)}")
    notes += check_names(root, names, classes)
    return Reading(CLASS_FOLDERS, tree.depth, dict.fromkeys(names), tuple(notes))


def _by_parents(root: str, images: Sequence[PurePosixPath], classes: Sequence[str] | None) -> Reading:
    parents = Counter(path.parts[-2] for path in images if len(path.parts) > 1)
    all_names = sorted(name for name in parents if not is_unlabelled(name))
    names = [name for name in all_names if not classes or class_name(name) in classes]
    if not names:
        raise UserError(f"{root}: --layout {PARENT_FOLDERS}: no image in it lies in the folder of a class")
    left = [f"{shown(name)} ({parents[name]})" for name in all_names if name not in names]
    notes = [f"left out, folders that --classes does not name (images): {some(left)}"] if left else []
    notes += check_names(root, names, classes)
    return Reading(PARENT_FOLDERS, 0, dict.fromkeys(names), tuple(notes))


def _by_splits(root: str, tree: _Tree, classes: Sequence[str] | None) -> Reading:
    roles = split_roles(tree.names)
    if not roles:
        found = f"found {named(tree.names)}" if tree.names else "found none"
        raise UserError(
            f"{root}: --layout {SPLITS} needs a folder train and a folder test (or val) side by side: {found}"
        )
    held = [shown(name) for name, role in roles.items() if role == "holdout"]
    pool = [shown(name) for name, role in roles.items() if role == "pool"]
    notes = [f"{', '.join(pool)} is the pool, {', '.join(held)} the holdout"]
    left = [f"{shown(name)} ({tree.counts[name]})" for name in tree.names if name not in roles]
    left += [shown(path) for path in tree.direct]
    if left:
        notes.append(f"left out, outside the splits (images): {some(left)}")
    inside = sorted({below for name in roles for below in tree.below(name) if below and not is_unlabelled(below)})
    strangers = [name for name in inside if classes and class_name(name) not in classes]
    if strangers:
        given = ", ".join(classes or ())
        raise UserError(f"{root}: folder {shown(strangers[0])!r} of a split is not among the classes given: {given}")
    notes += check_names(root, inside, classes)
    return Reading(SPLITS, tree.depth, roles, tuple(notes))


def _not_classes(tree: _Tree) -> tuple[str, ...]:
    return (f"folders are not classes: {named(tree.names)}",) if tree.names else ()


def check_names(root: str, names: Sequence[str], classes: Sequence[str] | None = None) -> list[str]:
    """Notes on names that are spelled in several ways but are one class (Unicode forms).

    Raises UserError for names that differ in blanks or in case alone, unless `classes` names each of the latter.
    """
    spellings: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        spellings.setdefault(class_name(name), []).append(name)
    if "" in spellings:
        raise UserError(f"{root}: a class whose name is blanks alone: rename it")
    notes = []
    for name, spelled in spellings.items():
        if len({unicodedata.normalize("NFC", shown(one)) for one in spelled}) > 1:
            raise UserError(f"{root}: {named(spelled, quoted=True)} differ in blanks alone: rename one, or merge them")
        if len(spelled) > 1:
            notes.append(f"{name} is spelled in {len(spelled)} forms (Unicode): one class")
    folded: dict[str, list[str]] = {}
    for name in spellings:
        folded.setdefault(_folded(name), []).append(name)
    for alike in folded.values():
        if len(alike) > 1 and not set(alike) <= set(classes or ()):
            raise UserError(
                f"{root}: {named(alike)} differ in {_difference(alike)} alone: rename or merge them if they are one "
                f"class; if each is a class of its own, name all classes: --classes {','.join(spellings)}"
            )
    return notes


def _folded(name: str) -> str:
    """What is left of a name where file systems and people see no difference: case, width, blanks, dots at the end."""
    seen = "".join(
        sign for sign in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(sign) != "Cf"
    )
    return " ".join(seen.rstrip(". ").split()) or name


def _difference(alike: Sequence[str]) -> str:
    return "case" if len({name.casefold() for name in alike}) == 1 else "case, blanks, width or dots at the end"


# --- what is ambiguous ------------------------------------------------------------------------------------------------


def _are_places(root: str, tree: _Tree, classes: Sequence[str] | None) -> bool:
    """Whether the classes that the user named show that folders are something else, and not ambiguously so."""
    if not classes:
        return False
    names = {class_name(name): name for name in tree.names}
    strangers = [name for name in names if name not in classes]
    if not strangers:
        return False
    given = ", ".join(classes)
    alike = {name.casefold() for name in classes}
    near = [name for name in strangers if name.casefold() in alike]
    if near:
        raise UserError(
            f"{root}: folder {near[0]!r} is spelled otherwise in the classes given: {given}; spell it alike"
        )
    if len(strangers) < len(names):
        raise UserError(
            f"{root}: folder {strangers[0]!r} is not among the classes given: {given}; name it too, or leave such "
            f"folders out with --layout {CLASS_FOLDERS}"
        )
    splits = split_roles(tree.names)
    if splits or (len(names) > 1 and _doubts(tree) is None):
        kept = f"; --layout {SPLITS} keeps the splits" if splits else ""
        raise UserError(
            f"{root}: no folder is named as one of the classes given ({given}), the folders are {named(tree.names)}: "
            f"--layout {FLAT} takes all images as unlabelled{kept}; or name the folders in --classes"
        )
    return True


def _refuse_ambiguous(root: str, tree: _Tree) -> None:
    """Raise UserError if the folders may not be classes."""
    if len(tree.names) == 1:
        raise UserError(
            f"{root}: at least two classes are needed, found {shown(tree.names[0])}: if folders are no classes, "
            f"--layout {FLAT} --classes a,b takes all images as unlabelled"
        )
    splits = [name for name in tree.names if is_split(name)]
    if splits:
        raise UserError(f"{root}: {_about_splits(tree, splits)}")
    foldered = sum(tree.counts.values())
    if not _are_strays(len(tree.direct), foldered):
        raise UserError(
            f"{root}: {len(tree.direct)} images lie beside the folders {named(tree.names)} with {foldered}: "
            f"--layout {CLASS_FOLDERS} takes the folders as classes and the others as unlabelled, "
            f"--layout {FLAT} --classes a,b takes all as unlabelled"
        )
    doubt = _doubts(tree)
    if doubt:
        inner = sorted({path.parts[-2] for path in tree.images if len(path.parts) > 1} - set(tree.names))
        parents = f", --layout {PARENT_FOLDERS} takes the innermost folders ({named(inner)})" if len(inner) > 1 else ""
        raise UserError(
            f"{root}: {doubt}, perhaps no classes: --layout {CLASS_FOLDERS} takes each as a class{parents}, "
            f"--layout {FLAT} --classes a,b takes all images as unlabelled"
        )


def splits_beside_table(
    root: str, table: str, images: Sequence[PurePosixPath], labelled: Collection[PurePosixPath]
) -> list[str]:
    """Notes on folders that look like splits where a table has the labels.

    Raises UserError if it has none for what looks like a test set: its images would be candidates.
    """
    tree = _Tree(images, None)
    roles = split_roles(tree.names)
    held = [name for name, role in roles.items() if role == "holdout"]
    if not held:
        return []
    if not any(len(path.parts) > tree.depth and path.parts[tree.depth] in held for path in labelled):
        raise UserError(
            f"{root}: {table} has labels, but none of {named(held)}: --layout {SPLITS} takes {named(held)} as the "
            f"holdout, --layout {FLAT} takes all images as one pool"
        )
    return [f"the folders {named(list(roles))} say nothing; --layout {SPLITS} keeps them apart"]


def _about_splits(tree: _Tree, splits: Sequence[str]) -> str:
    roles = split_roles(tree.names)
    held = named([name for name in splits if roles.get(name) == "holdout"])
    pool = named([name for name in splits if roles.get(name) == "pool"])
    others = [name for name in tree.names if name not in splits]
    with_classes = any(tree.below(name) - {""} for name in splits)
    options = []
    if roles:
        left = f", leaving out {named(others)}" if others else ""
        unlabelled = "" if with_classes else " (with --classes a,b for images without labels)"
        options.append(f"--layout {SPLITS} takes {held} as the holdout and {pool} as the pool{left}{unlabelled}")
    only = f" (with --classes {','.join(map(class_name, others))} only these)" if len(others) > 1 else ""
    options.append(f"--layout {CLASS_FOLDERS} takes each folder as a class{only}")
    if with_classes and len(splits) > 1:
        options.append("or name one of them as the source")
    if others:
        return f"{named(splits)} may be splits beside the folders {named(others)}: {'; '.join(options)}"
    return f"{named(splits)} are splits, not classes: {'; '.join(options)}"


def _doubts(tree: _Tree) -> str | None:
    """Why the folders may be no classes: what they look like, or hold; None where nothing speaks against it."""
    names = tree.names
    if looks := look_like(names):
        return looks
    shared = set.intersection(*(tree.below(name) for name in names))
    if len(names) > 1 and len(shared) > 1 and "" not in shared:
        return f"the folders {named(names)} all hold the same folders {named(sorted(shared))}"
    few = sorted(tree.counts[name] for name in names)[len(names) // 2]
    if (len(names) >= 10 and few <= 1) or (len(names) >= 50 and few <= 3):
        return f"there are {len(names)} folders, most with {few} image{'s' * (few > 1)} or fewer"
    return None
