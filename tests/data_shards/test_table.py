"""CSV rows that are not what they seem: every message names file and line, and says what would be right."""

from __future__ import annotations

import pytest

from egmf_shards import ShardError
from egmf_shards.importers.table import read_csv

COLUMNS = ("a", "b")
RIGHT = 'a cell with quotes in it is written "so, ""and"" so"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n1,so, and so\n",
            "x.csv, line 3: the row has 3 cells, and the header has 2: a cell that holds a comma",
        ),
        ("a,b\n1,2,\n", "x.csv, line 2: the row has 3 cells"),
        ("a,b\n\n1\n", "x.csv, line 3: the row ends before column 'b': 1 cells, and the header has 2"),
        ('a,b\n1,"x\ny"\n2,"Hi" he said\n', f"x.csv, line 4: something follows a closing quote; {RIGHT}"),
        ('a,b\n1,2\n2,"Hi he said\n3,4\n', f"x.csv, line 3: the row opens a quote that never closes; {RIGHT}"),
        (
            'a,b\n1,"' + "x,\n" * 60_000,
            "x.csv, line 2: a cell of more than 131072 characters: a quote that never closes?",
        ),
        ("a, b\n1,2\n", "x.csv, line 1: the header says ' b' where 'b' is needed; write it so"),
        ("a,B \n1,2\n", "x.csv, line 1: the header says 'B ' where 'b' is needed"),
        ("a;b\n1;2\n", "x.csv, line 1: has no column 'a'; its columns are a;b"),
        ("a,b,b\n1,2,3\n", "x.csv, line 1: the column 'b' occurs 2 times"),
        ("", "x.csv: is empty; a header with a, b is needed"),
        ("\n\n", "x.csv: is empty"),
        ("a,b\n", "x.csv: holds no row below its header"),
    ],
)
def test_a_fault_has_its_line_and_what_would_be_right(text, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ShardError) as caught:
        read_csv(path, COLUMNS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_know_the_line_they_begin_in(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('\ufeffb,a,c\n1,"x\ny",3\n\n"q ""r""",5,6\n', encoding="utf-8")
    rows = read_csv(path, COLUMNS)
    assert [(row.where.rpartition(", ")[2], row.cells) for row in rows] == [
        ("line 2", {"b": "1", "a": "x\ny", "c": "3"}),
        ("line 5", {"b": 'q "r"', "a": "5", "c": "6"}),
    ]


@pytest.mark.parametrize("cell", ["x", "-1", "1.0", "", "9" * 5000, "٣"])
def test_a_whole_number(cell, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f"a,b\n{cell},1\n", encoding="utf-8")
    row = read_csv(path, COLUMNS)[0]
    assert row.integer("b") == 1
    with pytest.raises(ShardError, match=r"x.csv, line 2: a is .*; a whole number is needed") as caught:
        row.integer("a")
    assert len(str(caught.value)) < 300
