"""Tables in text files, as spreadsheets write them."""

import csv
import subprocess
from pathlib import Path

import pytest

from vabal.errors import UserError
from vabal.labels import delimited

KNOWN = ("sample_id", "label", "annotator")


def cells(text: str) -> list[tuple[str, ...]]:
    return [line.cells for line in delimited.lines_of(text, "f.csv", KNOWN)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_is_read_in_every_encoding_of_unicode_that_shows_itself(encoding: str) -> None:
    text = "sample_id;label\nä;貓\n"
    assert delimited.text_of(text.encode(encoding), "f.csv") == text


def test_an_older_encoding_is_refused_and_the_command_that_the_message_names_mends_it(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes("path,label\na.png,Kätzchen\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"line 2, byte 0xe4") as caught:
        delimited.text_of((tmp_path / "f.csv").read_bytes(), "f.csv")
    command = str(caught.value).split("`")[1]
    mended = subprocess.run([*command.split(), tmp_path / "f.csv"], capture_output=True, check=True).stdout
    assert "Kätzchen" in delimited.text_of(mended, "f.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04\x14\0\x06\0xl/workbook.xml", "save it as `CSV UTF-8`"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as `CSV UTF-8`"),
        (b"path,label\na\0.png,cat\n", "NUL bytes"),
        ("path,label\n".encode("utf-16")[:-1], "not a text file in UTF-16"),
    ],
    ids=["xlsx", "xls", "NUL", "half a character"],
)
def test_what_is_no_text_is_refused_in_one_line(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        delimited.text_of(content, "f.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "sample_id,label\nb,cat\n",
        "sample_id;label\r\nb;cat\r\n",
        "sample_id\tlabel\rb\tcat\r",
        "sample_id|label\nb|cat",
        ' "sample_id" , "label" \n\n "b" ,cat\n , \n',
        "SEP=;\r\nsample_id;label\r\nb;cat\r\n",
        '"sep=,"\nsample_id,label\nb,cat\n',
        "sep=\t\nsample_id\tlabel\nb\tcat",
    ],
)
def test_the_delimiter_the_line_ends_and_the_quotes_are_those_of_the_file(text: str) -> None:
    assert cells(text) == [("sample_id", "label"), ("b", "cat")]


def test_a_delimiter_in_a_quoted_name_of_a_column_misleads_nobody() -> None:
    assert cells('"note, as given, or none";sample_id;label\n1,2,3;b;cat\n')[1] == ("1,2,3", "b", "cat")


def test_quotes_hold_delimiters_quotes_and_line_ends_and_lines_keep_their_numbers() -> None:
    lines = delimited.lines_of('sample_id,label\n"a ""b"", c\r\nd\n","x\ny"\n\nb,cat\n', "f.csv", KNOWN)
    assert [(line.number, line.cells) for line in lines[1:]] == [(2, ('a "b", c\r\nd', "x\ny")), (7, ("b", "cat"))]


@pytest.mark.parametrize("text", ['b,"cat\nc,dog\n', 'b,"cat"dog\n', 'b,"cat" "dog"\n', 'b, "'])
def test_a_quote_that_does_not_end_its_cell_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^f\.csv: line 2: a quote that is not closed"):
        cells("sample_id,label\n" + text)


def test_a_quote_within_a_bare_cell_is_a_character_of_it() -> None:
    assert cells('sample_id,label\nb,pipe 5" wide\n')[1] == ("b", 'pipe 5" wide')


def test_cells_of_any_length_are_read_and_the_csv_module_stays_as_it_was() -> None:
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    assert cells(f'sample_id,label\n"{long}",{long}\n')[1] == (long, long)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("text", ["01", "1", "NA", "nan", "null", "None", "TRUE", "1e5", "2026-01-01"])
def test_cells_stay_the_text_that_they_are(text: str) -> None:
    assert cells(f"sample_id,label\nb,{text}\n")[1] == ("b", text)


def columns(header: str) -> delimited.Columns:
    return delimited.Columns.of(header.split(","), KNOWN, ("sample_id", "label"), "f.csv")


def test_a_wanted_column_that_stands_twice_is_refused_and_another_is_not() -> None:
    with pytest.raises(UserError, match="names the column label twice"):
        columns("sample_id,label,label")
    assert columns("sample_id,label,note,note").header == ("sample_id", "label", "note", "note")


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (("b", "cat", "ann", "x"), None),
        (("b", "cat"), None),
        (("b", ""), None),
        (("b",), "1 cells instead of 4"),
        (("b", "cat", "ann", "x", "y"), "5 cells instead of 4"),
        (("b", "cat", "ann", "x", ""), "5 cells instead of 4"),
    ],
)
def test_a_line_has_no_more_cells_than_the_header_and_those_that_are_needed(
    cells: tuple[str, ...], problem: str | None
) -> None:
    found = columns("sample_id,label,annotator,image").problem(delimited.Line(2, cells))
    assert found is None if problem is None else found is not None and found.startswith(problem)
