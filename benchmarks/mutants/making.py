"""The mutants of a module: mutmut's operators, each applied once, as changed code of one function.

Mutmut itself leaves decorated functions alone and runs in a changed copy of the tree. Here a mutant is a code object,
which takes the place of the function's own in a process that has imported everything.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

Place = tuple[str, int]  # a function: its qualified name and its first line


@dataclass(frozen=True)
class Mutant:
    """A change of one function: its new code, and its new defaults by their position in the signature."""

    key: str
    file: Path
    place: Place
    lines: range
    change: str
    code: CodeType
    defaults: tuple[tuple[Any, ...] | None, dict[str, Any] | None] | None

    @property
    def function(self) -> str:
        """The function's name, with its class."""
        return self.place[0]


class _Everything(MutationVisitor):  # type: ignore[misc]
    """Decorated functions too."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        return not isinstance(node, cst.FunctionDef) and bool(super()._skip_node_and_children(node))


def mutants(file: Path, every: int = 1) -> Iterator[Mutant]:
    """All mutants of the functions and methods of a module, in the order of its lines, or only every so many'th.

    Left out are two kinds that say nothing: words within `raise`, which tell a person what is wrong, and a second and
    third change of the same string (mutmut changes its case, too).
    """
    source = file.read_text()
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = _Everything(mutation_operators, IgnoredCode(set(), set(), set()))
    module = wrapper.visit(visitor)
    positions, parents = wrapper.resolve(PositionProvider), wrapper.resolve(ParentNodeProvider)
    before = _functions(compile(source, str(file), "exec"))
    for made in [made for made in visitor.mutations if _counts(made, parents)][::every]:
        outer, node = made.contained_by_top_level_function, made.original_node
        owner = _owner(outer, parents)
        name = f"{owner}.{outer.name.value}" if owner else outer.name.value
        places = [place for place in before if place[0] == name and place[1] <= positions[outer].start.line]
        text = deep_replace(module, node, made.mutated_node).code
        try:
            code = _functions(compile(text, str(file), "exec"))[max(places)]
        except (SyntaxError, KeyError, ValueError):  # not Python, or no function that is there after the import
            continue
        defaults = _defaults(source, text, max(places))
        if code == before[max(places)] and defaults is None:
            continue
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        yield Mutant(key, file, max(places), _lines(node, positions, parents), _change(source, text), code, defaults)


def _counts(made: Any, parents: Any) -> bool:
    if not isinstance(made.contained_by_top_level_function, cst.FunctionDef):
        return False
    return not _says_nothing(made.original_node, made.mutated_node, parents)


def _functions(code: CodeType) -> dict[Place, CodeType]:
    """The functions of a module and of its classes, not those inside other functions."""
    found = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and "<locals>" not in inner.co_qualname:
            found[inner.co_qualname, inner.co_firstlineno] = inner
            found |= _functions(inner)
    return found


def _owner(outer: cst.FunctionDef, parents: Any) -> str:
    node = parents[outer]
    while not isinstance(node, cst.Module | cst.ClassDef):
        node = parents[node]
    return node.name.value if isinstance(node, cst.ClassDef) else ""


def _says_nothing(node: cst.CSTNode, mutated: cst.CSTNode, parents: Any) -> bool:
    if not isinstance(node, cst.BaseString):
        return False
    if isinstance(mutated, cst.SimpleString) and "XX" not in mutated.value:
        return True
    while not isinstance(node, cst.BaseStatement | cst.BaseSmallStatement):
        node = parents[node]
    return isinstance(node, cst.Raise)


def _lines(node: cst.CSTNode, positions: Any, parents: Any) -> range:
    """Where it runs: the small statement around it, or what stands before a compound one's block."""
    end, around = positions[node].end.line, node
    while not isinstance(around, cst.BaseCompoundStatement | cst.BaseSmallStatement):
        around = parents[around]
    place = positions[around]
    if isinstance(around, cst.FunctionDef):  # a default: wherever the function runs
        return range(positions[around.body].start.line, place.end.line + 1)
    if isinstance(around, cst.BaseSmallStatement):
        end = place.end.line
    return range(place.start.line, max(place.start.line, end if node is not around else place.start.line) + 1)


def _defaults(source: str, text: str, place: Place) -> Any:
    """The defaults of the function's parameters where they changed; None where they are as before."""
    old, new = (_arguments(ast.parse(code), place) for code in (source, text))
    if ast.dump(old) == ast.dump(new):
        return None
    try:
        positional = tuple(ast.literal_eval(value) for value in new.defaults) or None
        named = {
            name.arg: ast.literal_eval(value)
            for name, value in zip(new.kwonlyargs, new.kw_defaults, strict=True)
            if value is not None
        }
    except ValueError:
        return None
    return positional, named or None


def _arguments(tree: ast.Module, place: Place) -> ast.arguments:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == place[0].rpartition(".")[2]:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == place[1]:
                return node.args
    raise KeyError(place)


def _change(old: str, new: str) -> str:
    """The line with what was changed as `{before→after}`."""
    start = next(i for i, (a, b) in enumerate(zip(old + "\0", new + "\1", strict=False)) if a != b)
    most = min(len(old), len(new)) - start
    same = next((i for i in range(most) if old[-1 - i] != new[-1 - i]), most)
    before, after = old[:start].rpartition("\n")[2], old[len(old) - same :].partition("\n")[0]
    changed = f"{old[start : len(old) - same]}→{new[start : len(new) - same]}"
    return " ".join(f"{before[-45:]}{{{changed}}}{after[:45]}".split())
