"""Files that unpack to far more than they are, nest without end or blow up by aliases end in one line."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vabal.cli.options import assignments
from vabal.errors import UserError
from vabal.labels.answers import read_answers
from vabal.settings import bounds, params
from vabal.sources.arrays import Npz


def _npz(path: Path, name: str, header: tuple[int, ...], zeros: int) -> Path:
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": "|u1", "fortran_order": False, "shape": header})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w", force_zip64=True) as out:
        out.write(start.getvalue())
        for _ in range(zeros // 2**20):
            out.write(bytes(2**20))
    return path


def test_an_npz_that_unpacks_to_many_times_its_size_is_refused_unread(tmp_path: Path) -> None:
    path = _npz(tmp_path / "bomb.npz", "images.npy", (320, 1024, 1024), 320 * 2**20)
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match=r"^[^\n]*bomb\.npz: unpacks to more than 200 times its size: save it with "):
        Npz(path)


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20, 2**20), (-1, 5, 5)])
def test_an_npz_whose_header_promises_what_it_has_not_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*bomb\.npz: [^\n]*$"):
        Npz(_npz(tmp_path / "bomb.npz", "images.npy", shape, 0))


def test_an_ordinary_npz_of_black_images_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "black.npz", images=np.zeros((200, 64, 64), np.uint8))
    assert len(list(Npz(tmp_path / "black.npz", ["a", "b"]).items())) == 200


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000, "[" + "9" * 5000 + "]"])
def test_labels_in_json_without_an_end_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^f\.json: (line 1: )?not valid JSON: [^\n]*$") as caught:
        read_answers(text.encode(), "f.json")
    assert len(str(caught.value)) < 300


def test_a_file_beyond_its_limit_is_refused_after_no_more_than_that(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(2 * bounds.MIB + 1))
    assert len(bounds.read_file(tmp_path / "f", 3 * bounds.MIB)) == 2 * bounds.MIB + 1
    with pytest.raises(UserError, match=r"f: larger than 2 MiB, the most that is read: split it$"):
        bounds.read_file(tmp_path / "f", 2 * bounds.MIB)


LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "text",
    [
        *(LAUGHS, "a: &a [*a]\n", "a: &a {b: *a}\n", "[" * 3000 + "]" * 3000, "a: " + "{b: " * 3000 + "}" * 3000),
        *("seed: " + "9" * 5000, "seed: 0x" + "f" * 20_000, "seed: 2024-13-45", "seed: .nan", "seed: .inf"),
        *("x" * (bounds.SETTINGS_BYTES + 1), "a: " + "- b\n" * 3, "\x00", "vae: {beta: .nan}", "seed: 1e400"),
    ],
)
def test_settings_that_blow_up_are_refused_in_one_short_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        params.load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_anchors_that_stay_small_are_taken(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: &s 7\nselection: {budget: *s}\n")
    assert params.load(tmp_path / "params.yaml").selection.budget == 7


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 3000, "&a [*a]"])
def test_a_setting_on_the_command_line_that_blows_up_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"^--set seed="):
        assignments([f"seed={value}"])
