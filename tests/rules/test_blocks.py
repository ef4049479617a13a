"""The blocks of every page: each says what it is, each command in it can be typed, and what is not run says why."""

from collections import Counter
from pathlib import Path

import pytest

from tests.rules.repository import ROOT, files
from tests.support.blocks import Block, UnknownMarkError, blocks, problem

PAGES = [path for path in files(".md") if path.parts[0] == "docs" or len(path.parts) == 1]
LANGUAGES = {"sh", "python", "toml", "text", "mermaid"}
# How many blocks `tests/integration/test_pages.py` passes by: each says why, in the comment above it.
NOT_RUN = {
    "README.md": 3,
    "CONTRIBUTING.md": 1,
    "docs/decisions/drift.md": 1,
    "docs/decisions/serving.md": 1,
    "docs/evidence.md": 6,
    "docs/evidence-scratch.md": 6,
    "docs/labelling.md": 2,
    "docs/learners.md": 5,
    "docs/operations.md": 1,
    "docs/protocols.md": 7,
    "docs/strategies.md": 2,
}


def of_page(path: Path) -> list[Block]:
    return blocks(str(path), (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_every_block_says_what_it_is_and_every_command_in_it_can_be_typed(path: Path) -> None:
    found = of_page(path)

    assert {str(block): block.language for block in found if block.language not in LANGUAGES} == {}
    typed = [(block, words) for block in found if block.language in ("sh", "text") for words in block.commands()]
    wrong = {f"{block}: {' '.join(words)}": problem(words, ROOT) for block, words in typed}
    assert {command: why for command, why in wrong.items() if why is not None} == {}


def test_what_is_not_run_is_counted() -> None:
    found = [block for path in PAGES for block in of_page(path) if block.language in ("sh", "python")]
    assert Counter(block.page for block in found if not block.is_run) == NOT_RUN
    assert {block.page for block in found if block.is_run} == {"README.md", "docs/audit.md"}


@pytest.mark.parametrize(
    ("mark", "is_run", "settings"),
    [
        ("<!-- not run: needs a cluster -->", False, []),
        ("<!-- run with: a.b=1 c=d -->", True, ["a.b=1", "c=d"]),
        ("<!-- run in the demo's workspace -->", True, []),
        ("A sentence.", True, []),
    ],
)
def test_the_comment_above_a_block_says_whether_and_how_it_is_run(mark: str, is_run: bool, settings: list[str]) -> None:
    [block] = blocks("page.md", f"Text.\n\n{mark}\n```sh\nvabal up\n```\n")
    assert (block.is_run, block.settings) == (is_run, settings)


@pytest.mark.parametrize("mark", ["<!-- skip -->", "<!-- not run -->", "<!-- not run: -->", "<!-- run with: -->"])
def test_a_comment_that_no_test_knows_is_refused(mark: str) -> None:
    with pytest.raises(UnknownMarkError, match=r"page\.md:1"):
        blocks("page.md", f"{mark}\n```sh\nvabal up\n```\n")


def test_commands_go_on_behind_a_backslash_and_within_quotes_in_a_list_too() -> None:
    lines = ["vabal init --source digits \\", "    --seed 1  # here", "# nothing", 'python -c "a', 'b"']
    [block] = blocks("page.md", "\n".join(["1. So:", "", *(f"   {line}" for line in ("```sh", *lines, "```")), ""]))
    assert block.commands() == [["vabal", "init", "--source", "digits", "--seed", "1"], ["python", "-c", "a\nb"]]


def test_a_transcript_has_commands_and_what_they_said() -> None:
    [block] = blocks("page.md", "```text\n$ vabal up\nall is up\n\n$ vabal down\n```\n")
    assert block.transcript() == [("vabal up", ["all is up"]), ("vabal down", [])]
    assert block.commands() == [["vabal", "up"], ["vabal", "down"]]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["vabal", "up", "--workspace", "here"], "No such option: --workspace"),
        (["vabal", "replay"], "Missing parameter: round_number"),
        (["vabal", "rond"], "No such command 'rond'"),
        (["vabal", "bench", "--protocol", "digit", "--out", "x"], "digit"),
        (["vabal", "bench", "--source", "digits", "--strategies", "randm", "--out", "x"], "randm"),
        (["vabal", "bench", "--source", "digits", "--set", "classifier.depth=3", "--out", "x"], "classifier.depth"),
        (["make", "dmo"], "no target"),
        (["python", "-m", "benchmarks.nothing"], "no module benchmarks.nothing"),
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_be_typed_is_found(command: list[str], why: str) -> None:
    found = problem(command, ROOT)
    assert found is not None
    assert why in found


@pytest.mark.parametrize(
    "command", [["make", "demo"], ["python", "-m", "benchmarks.tamper", "x"], ["vabal", "-C", "x", "up"]]
)
def test_one_that_can_is_not(command: list[str]) -> None:
    assert problem(command, ROOT) is None
