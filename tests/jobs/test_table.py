import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.jobs.file import LONGEST_LINE, read_jobs
from cdiff_rt.jobs.rows import Job
from cdiff_rt.settings import Settings

TEXT = 'A man, "old", with a beard.'


@pytest.fixture
def read(tmp_path, mask, bundle):
    """Rows of a table's bytes, beside which there is a mask."""
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "face.png")

    def rows(content, name="jobs.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_jobs(tmp_path / name, bundle.manifest)

    return rows


def test_a_table_is_the_rows_that_json_would_be(read, tmp_path):
    table = "id,mask,text,seed,steps,eta,snap,without,meta.age,meta.from\n"
    table += '0007,masks/face.png,"A man, ""old"", with a beard.",7,2.0,1e-1,TRUE,mask,031,\n'
    table += "\n,,Eine Größe,,,,,,,\n"
    assert read(table) == [
        Job(
            "0007",
            {"mask": tmp_path / "masks" / "face.png", "text": TEXT},
            Settings(seed=7, steps=2, eta=0.1, snap=True, without=("mask",)),
            {"age": "031"},
            2,
        ),
        Job("000003", {"text": "Eine Größe"}, Settings(seed=2), None, 4, counted=True),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jobs.csv", b"id,text,seed\na,one,7\n"),
        ("jobs.csv", b"\xef\xbb\xbfid,text,seed\r\na,one,7\r\n"),
        ("jobs.csv", b"id;text;seed\na;one;7"),
        ("jobs.csv", b"id\ttext\tseed\na\tone\t7\n"),
        ("jobs.tsv", b"id\ttext\tseed\na\tone\t7\n"),
        ("jobs.CSV", b'"id","text","seed"\n"a","one","7"\n'),
        ("jobs.csv", b"id, text, seed\na, one, 7.0\n"),
        ("jobs.csv", b'id, text, seed\na, "one", +7 \n'),
        ("jobs.csv", b"\n\nseed,,id,text,,\n7,,a,one,,,,\n,,,,,\n"),
        ("jobs.csv", b"id,text,seed,mask,eta\na,one,7,,\n"),
    ],
    ids=["plain", "BOM", "semicolons", "tabs", "tsv", "quotes", "spaces", "quotes after spaces", "empty", "no value"],
)
def test_what_programs_write_is_read(name, content, read):
    (job,) = read(content, name)
    assert (job.id, job.conditions, job.settings) == ("a", {"text": "one"}, Settings(seed=7))


def test_a_cell_that_begins_with_a_bracket_is_json_but_a_sentence_is_a_sentence(read):
    (job,) = read('text;without;meta\n[a man];"[""mask""]";"{""a"": [1, true]}"\n')
    assert (job.conditions, job.settings.without, job.meta) == ({"text": "[a man]"}, ("mask",), {"a": [1, True]})


def test_weights_and_regions_are_written_as_on_the_command_line(read, tmp_path):
    table = "text,influence,region\na man,text=2@0-0.5,text=masks/face.png:at-least=0.5\n"
    table += 'a man,"[""mask-first"", ""text=2""]",\n'
    first, second = read(table)
    told = first.settings.told()
    assert (told["influence"], told["region"]) == (["text=2@0-0.5"], [f"text={tmp_path}/masks/face.png:at-least=0.5"])
    assert second.settings.told()["influence"] == ["mask-first", "text=2"]


def test_a_cell_may_have_lines_and_rows_are_named_by_where_they_begin(read):
    table = 'text,seed\n"a man\r\nwith a beard",1\n"a\nb",x\n"c\nd",1.5\n'
    with pytest.raises(BadInput, match="2 of 3 rows are wrong") as caught:
        read(table)
    assert caught.value.exit_code == 3
    (job,) = read('text,seed\n"a man\nwith a beard",1\n')
    assert job.conditions == {"text": "a man\nwith a beard"}


HEADERS = {
    "a column of one's own": (b"id,caption\na,b\n", "key: 'caption'; a row has id, mask, text"),
    "no header": (b"1.png,A man has a beard.\n", "key: '1.png'; a row has"),
    "a column twice": (b"text,seed,text\na,1,b\n", "columns: 'text' stands twice"),
    "meta twice": (b"text,meta,meta.a\na,1,b\n", "columns: 'meta' stands twice"),
    "quotes that do not end": (b'"text,seed\na,1\n', "columns: not CSV"),
    "batch": (b"text,batch\na,1\n", "key: 'batch'"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none_is_refused_once(name, read, tmp_path):
    content, words = HEADERS[name]
    with pytest.raises(BadInput) as caught:
        read(content + content)
    assert str(caught.value).startswith(f"{tmp_path}/jobs.csv, line 1, which names the columns: {words}")


ROWS = {
    "too few cells": ("a man", "row: 1 cells, but 3 columns have a name; put a cell"),
    "too many cells": ("a man, with a beard,7,,9", "row: 5 cells, but 3 columns have a name; put a cell"),
    "a cell without a name": ("a,1,,x", "row: 4 cells, but 3"),
    "a quote in a cell": ('"a" man,1,', "row: not CSV"),
    "a quote that does not end": ('"a man,1,', "row: not CSV"),
    "a cell that is too long": ("a" * 140_000 + ",1,", "row: not CSV (field larger than field limit"),
    "not UTF-8": (b"J\xf6rg,1,", "row: not UTF-8 text; save the file as UTF-8 (in a spreadsheet, as CSV UTF-8)"),
    "a word as seed": ("a,x,", "seed: 'x'; give a whole number"),
    "an underscore in a seed": ("a,1_000,", "seed: '1_000'; give a whole number"),
    "a fraction as seed": ("a,1.5,", "seed: 1.5; give a whole number"),
    "no number": ("a,1,nan", "eta: 'nan'; give a number"),
    "a decimal comma": ('a,1,"0,5"', "eta: '0,5'; give a number"),
    "a huge number": ("a,1e999,", "seed: inf"),
    "no condition": (",7,", "conditions: none given"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_refused_with_its_line(name, read, tmp_path):
    line, words = ROWS[name]
    line = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(BadInput) as caught:
        read(b"text,seed,eta\na man,7,0.5\n" + line + b"\n")
    assert str(caught.value).startswith(f"{tmp_path}/jobs.csv, line 3: {words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"text,seed\n", "it has no row"),
        (b"\n \n", "it has no row"),
        (b"text,seed\n,\n,,,\n", "it has no row"),
        ("text\na man\n".encode("utf-16"), "it is UTF-16 or UTF-32.*; save it as UTF-8"),
        (b"text\n" + b"a," * LONGEST_LINE + b"\n", f"line 2: it is longer than {LONGEST_LINE} bytes"),
    ],
    ids=["nothing", "a header alone", "empty lines", "empty rows", "UTF-16", "a line without end"],
)
def test_a_table_that_is_none_is_refused(content, words, read):
    with pytest.raises(BadInput, match=words):
        read(content)


def test_a_column_without_a_name_may_hold_nothing(read):
    with pytest.raises(BadInput, match="line 2: row: '0' in a column without a name; give it one, or leave the column"):
        read(b",id,text\n0,a,one\n")
