"Tests of cfvae.files.tables: labels from CSV and JSON lines."

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from trees import quiet

from cfvae.core import CfvaeError
from cfvae.files.names import printable
from cfvae.files.open import open_dataset
from cfvae.files.tables import list_table

ROWS = [("a.png", "dog"), ("below/b.png", "cat"), ("c.png", "dog"), ("d.png", "")]


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "below").mkdir()
    for number, (name, _) in enumerate(ROWS):
        Image.new("RGB", (8, 8), (40 * number, 200, 0)).save(tmp_path / name)
    return tmp_path


def csv_text(header="file_name,label", delimiter=","):
    lines = [header.replace(",", delimiter)] + [f"{name}{delimiter}{label}" for name, label in ROWS]
    return "\n".join(lines) + "\n"


TEXTS = {
    "plain.csv": csv_text().encode(),
    "excel.csv": csv_text("Image;Class").replace(",", ";").encode("utf-8-sig"),
    "tabs.tsv": csv_text("path,category", "\t").encode(),
    "windows.csv": csv_text("FILE,Label").replace("\n", "\r\n").encode(),
    "metadata.jsonl": "".join(
        json.dumps({"file_name": name, "label": label or None}) + "\n" for name, label in ROWS
    ).encode(),
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_form_gives_the_same(pictures, name):
    (pictures / name).write_bytes(TEXTS[name])
    listing = list_table(pictures / name)
    assert listing.classes == ("cat", "dog") and listing.labels == (1, 0, 1, -1)
    assert listing.names == tuple(file for file, _ in ROWS)
    dataset = open_dataset(f"table:{pictures / name}", 8, cache=pictures / "cache")
    assert np.asarray(dataset.images)[:, 0, 0, 0].tolist() == [0, 40, 80, 120]
    assert dataset.labels.tolist() == [1, 0, 1, -1] and dataset.name == name


def test_numbers_are_classes_in_their_order(pictures):
    table = pictures / "numbers.csv"
    table.write_text("file,label\na.png,10\nc.png,9\nd.png,2\n")
    assert list_table(table).classes == ("2", "9", "10")
    table.write_text('{"file": "a.png", "label": 1}\n{"file": "c.png", "label": 0}\n')
    assert list_table(table).labels == (1, 0)


def test_without_labels_there_are_no_classes(pictures):
    (pictures / "bare.csv").write_text("file,label\na.png,\nc.png,\n")
    assert list_table(pictures / "bare.csv").classes == ("all",)
    assert list_table(pictures / "bare.csv").labels == (-1, -1)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("label, file\n2, a.png\n10, c.png\n", ("2", "10")),
        ('file, label\na.png, "2, 3"\nc.png, 10\n', ("10", "2, 3")),
        ("file,label\nbelow\\b.png,2\nc.png,10\n", ("2", "10")),
        ("file,label\na.png,2.0\nc.png,10.0\nd.png,\n", ("2", "10")),
        ("file,label\na.png,2.0\nc.png,2.1\n", ("2.0", "2.1")),
    ],
)
def test_what_programs_make_of_a_table_is_read(pictures, cache, text, classes):
    (pictures / "made.csv").write_text(text)
    dataset, told = quiet(f"table:{pictures / 'made.csv'}", cache=cache)
    assert dataset.classes == classes and not dataset.skipped and not told


@pytest.mark.parametrize("label", ["nan", "None", "NULL", "N/A", "-1"])
def test_a_label_that_may_mean_none_is_told(pictures, label):
    (pictures / "gaps.csv").write_text(f"file,label\na.png,x\nc.png,y\nd.png,{label}\n")
    (note,) = list_table(pictures / "gaps.csv").notes
    assert note.startswith(f"{label} is taken for a class")


@pytest.mark.parametrize(
    ("header", "unread"),
    [("file,label,class", "class"), ("path,category,Split", "Split"), ("file,label,note", "")],
)
def test_columns_that_could_be_meant_and_are_not_read_are_told(pictures, header, unread):
    (pictures / "more.csv").write_text(f"{header}\na.png,x,train\nc.png,y,test\n")
    notes = list_table(pictures / "more.csv").notes
    assert [f", and not {unread}: all rows are one split" in note for note in notes] == [True] * bool(unread)


def test_files_that_are_missing_are_left_out(pictures):
    (pictures / "more.csv").write_text("file,label\na.png,x\nc.png,y\ngone.png,y\n")
    with pytest.warns(UserWarning, match=r"1 of 3 images cannot be read and are left out: gone.png"):
        assert len(open_dataset(f"table:{pictures / 'more.csv'}", 8, cache=pictures / "cache")) == 2


def test_a_file_that_is_named_twice_is_one_image(pictures):
    (pictures / "twice.csv").write_text("file,label\na.png,x\nc.png,y\n./a.png,x\nbelow//b.png,x\n")
    listing = list_table(pictures / "twice.csv")
    assert listing.names == ("a.png", "c.png", "below/b.png") and listing.labels == (0, 1, 0)
    assert listing.notes == ("1 rows name a file again and are left out",)


@pytest.mark.parametrize(
    "label", ["one\u2028two", "one\u0085two", "one\x0ctwo", "one\ntwo", 'one"two', "one,two"]
)
def test_labels_keep_their_characters(pictures, label):
    "Whatever a program writes into a field, a row ends where its form says so."
    table = pictures / "odd.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "label"), ("a.png", label), ("c.png", "other")])
    of_csv = list_table(table)
    rows = [{"file": "a.png", "label": label}, {"file": "c.png", "label": "other"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table.write_text(lines, encoding="utf-8")
    assert of_csv.names == list_table(table).names == ("a.png", "c.png")
    assert of_csv.classes == list_table(table).classes == tuple(sorted([printable(label), "other"]))


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "names no images"),
        (b"file,label\n", "names no images"),
        (b"name,label\na.png,x\n", "has no column file_name or .*: it has name, label"),
        (b"file,kind\na.png,x\n", "has no column label or class or category: it has file, kind"),
        (b"file,label\n/etc/passwd,x\n", "in full, or that leads out: /etc/passwd: write"),
        (b"file,label\n../x.png,x\n", r"leads out: \.\./x.png"),
        (b"file,label\na.png,x\n,x\n", "row 2 names no file"),
        (b'{"file": 0, "label": 1}\n', "row 1 names no file"),
        *[
            (b'{"file": "a.png", "label": 1}\n{"file": "c.png", "label": %s}' % label, "row 2 has the label")
            for label in (b"[1, 2]", b'{"a": 1}', b"true", b"1.0", b"NaN")
        ],
        (b"file,label\na.png,tench, Tinca tinca\n", "row 1 has other cells than the columns file, label"),
        (b"file,label\na.png,x\nc.png\n", "row 2 has other cells"),
        (b'{"file": "a.png", "label": 1}\n{"file": "c.png", "lable": 1}', "row 2 has other cells"),
        (b"file,label,label\na.png,x,1\n", "has two columns label: rename one"),
        (b"file,Label,label\na.png,x,1\n", "has two columns label: rename one"),
        (b'file,label\na.png,"x\nc.png,y\nd.png,x\n', "cannot be read .unexpected end of data"),
        (b"  \nfile,label\na.png,x\n", "it has $"),
        (b'[{"file": "a.png", "label": 1}]\n', "a line is no JSON object"),
        (b"file,label\na.png,x\n./a.png,y\n", "gives a file two labels: a.png"),
        (b"file,label\nK\xe4fer.png,x\n", "cannot be read .*UTF-8"),
        (b'{"file": "a.png", "label": 1}\n{"file":', "cannot be read"),
        (b'{"file": "a.png", "label": 1}\n[1]\n', "cannot be read .a line is no JSON object"),
        (b"{" * 100000, "cannot be read"),
        (b"file,label\n" + b"x" * 200000 + b",y\n", "cannot be read"),
    ],
)
def test_tables_that_cannot_be_used(pictures, content, complaint):
    (pictures / "bad.csv").write_bytes(content)
    with pytest.raises(CfvaeError, match=rf"bad\.csv.*{complaint}") as caught:
        open_dataset(f"table:{pictures / 'bad.csv'}", 8, cache=pictures / "cache")
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_is_no_table_and_a_table_has_one_split(pictures):
    with pytest.raises(CfvaeError, match="cannot be read"):
        open_dataset(f"table:{pictures}", 8, cache=pictures / "cache")
    (pictures / "plain.csv").write_bytes(TEXTS["plain.csv"])
    with pytest.raises(CfvaeError, match="no validation split"):
        open_dataset(f"table:{pictures / 'plain.csv'}", 8, train=False, cache=pictures / "cache")


def test_messages_call_a_table_by_its_name_or_else_by_its_path(pictures):
    for name, called in (("photos", "photos"), (None, str(pictures / "plain.csv"))):
        with pytest.raises(CfvaeError, match=f"^{re.escape(called)} has no validation split"):
            list_table(pictures / "plain.csv", train=False, name=name)
