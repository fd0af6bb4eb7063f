"""Files are read strictly: every row is accounted for, or one error gives file, line and cause."""

import csv
import io
import json
import sys
import time
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from byte_tokenizer import Bytes, learned, whole
from hypothesis import given
from hypothesis import strategies as st

from lorica.data import DataConfig, load, rows_of
from lorica.data.csv_records import csv_records
from lorica.data.problems import Problems
from lorica.data.shapes import understand
from lorica.errors import DataError

GOOD = b'{"prompt": "a", "completion": "b"}\n'


def read(path, **config):
    return load(DataConfig(train=str(path), **config), Bytes(), limit=200)[0]


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


MALFORMED = {
    "not json": ("t.jsonl", GOOD + b"{prompt: 1}\n", r"t.jsonl:2: column 2"),
    "cut off": ("t.jsonl", GOOD + GOOD[:20], r"t.jsonl:2: column"),
    "two rows a line": ("t.jsonl", GOOD.strip() + GOOD, r"t.jsonl:1: column 35: more follows"),
    "duplicate field": ("t.jsonl", b'{"text": "a", "text": "b"}\n', r"t.jsonl:1: .*field 'text' appears twice"),
    "nested duplicate": ("t.jsonl", b'{"messages": [{"role": "user", "role": "x"}]}\n', "'role' appears twice"),
    "NaN": ("t.jsonl", b'{"text": "a", "score": NaN}\n', "t.jsonl:1: .*NaN is not JSON"),
    "Infinity": ("t.jsonl", b'{"text": "a", "score": -Infinity}\n', "-Infinity is not JSON"),
    "1e999": ("t.jsonl", b'{"text": "a", "score": 1e999}\n', "1e999 is too large"),
    "long integer": ("t.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", "t.jsonl:1: .*4300 digits"),
    "deep nesting": ("t.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "t.jsonl:1: .*nested too deeply"),
    "half a character": ("t.jsonl", b'{"text": "a\\ud800"}\n', "t.jsonl:1: .*lone surrogate"),
    "control character": ("t.jsonl", b'{"text": "a\tb\x01"}\n', "t.jsonl:1: column 12: Invalid control"),
    "latin-1": ("t.jsonl", GOOD + '{"text": "é"}\n'.encode("latin-1"), r"t.jsonl:2: byte 11 \(0xe9\) is not UTF-8"),
    "utf-16": ("t.jsonl", '{"text": "a"}\n'.encode("utf-16"), "t.jsonl: this is UTF-16; save it as UTF-8"),
    "utf-16 without mark": ("t.jsonl", '{"text": "a"}'.encode("utf-16-le"), "t.jsonl:1: column 2"),
    "nul bytes": ("t.jsonl", GOOD + b"\0" * 64 + b"\n", "t.jsonl:2: column 1"),
    "gzip": ("t.jsonl", b"\x1f\x8b\x08\0\0\0\0\0", "t.jsonl: this is compressed with gzip"),
    "array row": ("t.jsonl", b'["a", "b"]\n', "t.jsonl:1: a row is an object with named fields, not an array"),
    "text row": ("t.jsonl", b'"a"\n', "a row is an object with named fields, not text"),
    "null row": ("t.jsonl", GOOD + b"null\n", "t.jsonl:2: a row is an object with named fields, not null"),
    "number field": ("t.jsonl", b'{"text": 3}\n', "t.jsonl:1: field 'text': text, not a number"),
    "mixed shapes": ("t.jsonl", GOOD + b'{"text": "a"}\n', "t.jsonl:2: a text row among prompt_completion rows"),
    "mark in the middle": ("t.jsonl", GOOD + b"\xef\xbb\xbf" + GOOD, "t.jsonl:2: column 1"),
    "no rows": ("t.jsonl", b"\n  \n", "data.train: there are no rows"),
    "empty file": ("t.jsonl", b"", "data.train: there are no rows"),
    "json array cut off": ("t.json", b'[\n{"text": "a"}\n', "t.json:3: .*',' or ']' is missing"),
    "json array with a comma too many": ("t.json", b'[{"text": "a"},]', "t.json:1: column 16"),
    "json array with more behind": ("t.json", b'[{"text": "a"}] x', "t.json:1: .*more follows after the array"),
    "json array of text": ("t.json", b'[{"text": "a"},\n"b"]', "t.json:2: a row is an object"),
    "json array latin-1": ("t.json", b'[\n{"text": "\xe9"}]', "t.json:2: byte 0xe9 is not UTF-8"),
    "json object over lines": (
        "t.json",
        b'{\n"data": []\n}',
        "t.json:1: this is one object over several lines; a .json",
    ),
    "csv short record": ("t.csv", "prompt,completion\na,b\nc\n", "t.csv:3: 1 fields where the header has 2"),
    "csv long record": ("t.csv", "text\na,b\n", "t.csv:2: 2 fields where the header has 1"),
    "csv twice the same field": ("t.csv", "text,text\na,b\n", "t.csv:1: field 'text' appears twice"),
    "csv nameless field": ("t.csv", "text,\na,b\n", "t.csv:1: column 2 of the header has no name"),
    "csv open quote": ("t.csv", 'text\n"a\nb\n', "t.csv:2: .*never closed"),
    "csv quote inside": ("t.csv", 'text\n"a\n"\nb"c\n', "t.csv:4: .*quote in the middle"),
    "csv text behind a quote": ("t.csv", 'text\n"a"b\n', "t.csv:2: .*quote in the middle"),
    "csv latin-1": ("t.csv", "text\na\né\n".encode("latin-1"), "t.csv:3: byte 0xe9 is not UTF-8"),
    "csv of no shape": ("t.csv", "question,answer\na,b\n", "t.csv:2: the fields .question, answer. fit no shape"),
    "csv header only": ("t.csv", "text\n", "there are no rows"),
    "parquet that is none": ("t.parquet", b"PAR1 or not", "t.parquet:1: not readable as Parquet"),
    "empty parquet": ("t.parquet", b"", "t.parquet:1: not readable as Parquet"),
    "binary as text": ("t.txt", b"\x7fELF\0\1", "t.txt: not UTF-8 text; rows are read from .jsonl"),
    "pdf": ("t.pdf", b"%PDF-1.7", "t.pdf: this is a PDF"),
    "zip": ("t.zip", b"PK\x03\x04", "t.zip: this is a zip archive"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_one_error_with_file_line_and_cause(case, tmp_path):
    name, content, said = MALFORMED[case]
    with pytest.raises(DataError, match=said) as caught:
        read(put(tmp_path, name, content))
    assert str(caught.value).count("\n") == 0


ACCEPTED = {
    "mark at the start": ("t.jsonl", b"\xef\xbb\xbf" + GOOD, 1),
    "windows line ends": ("t.jsonl", GOOD.replace(b"\n", b"\r\n") * 2, 2),
    "no last line end": ("t.jsonl", GOOD + GOOD.strip(), 2),
    "blank lines": ("t.jsonl", b"\n" + GOOD + b" \t\n" + GOOD, 2),
    "line separators in text": ("t.jsonl", '{"text": "a\u2028b\x85c"}\n', 1),
    "right to left": ("t.jsonl", '{"text": "\u202eשלום"}\n', 1),
    "escaped pair": ("t.jsonl", b'{"text": "\\ud83d\\ude00"}\n', 1),
    "unused fields of any type": ("t.jsonl", b'{"text": "a", "n": 1.5, "m": [null, {}]}\n', 1),
    "ndjson": ("t.ndjson", GOOD, 1),
    "capital ending": ("T.JSONL", GOOD, 1),
    "json array": ("t.json", b'\n[ {"text": "a"} ,\n {"text": "b"}]\n', 2),
    "json array with mark": ("t.json", b'\xef\xbb\xbf[{"text": "a"}]', 1),
    "json by lines": ("t.json", GOOD * 3, 3),
    "csv": ("t.csv", "prompt,completion\na,b\nc,d\n", 2),
    "csv with mark": ("t.csv", b"\xef\xbb\xbftext\na\n", 1),
    "csv quotes and lines": ("t.csv", 'prompt,completion\n"a ""q""\n,b",c\n', 1),
    "csv blank lines": ("t.csv", "text\r\na\r\n\r\nb", 2),
    "tsv": ("t.tsv", "prompt\tcompletion\na, b\tc\n", 1),
    "plain text": ("t.txt", "line\nline\n", 1),
    "json as any text": ("t.md", GOOD, 1),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_unusual_and_well_formed_is_read(case, tmp_path):
    name, content, rows = ACCEPTED[case]
    data = read(put(tmp_path, name, content))
    assert (data.read, data.used) == (rows, rows)


def test_a_line_separator_in_a_text_does_not_end_the_row(tmp_path):
    data = read(put(tmp_path, "t.jsonl", '{"text": "a\u2028b\x85c"}\n'))
    assert whole(Bytes(), data[0]) == "<s>a\u2028b\x85c</s>"


def test_rows_are_named_by_file_and_line(tmp_path):
    path = put(tmp_path, "t.jsonl", GOOD + b"\n" + GOOD)
    assert [example.origin for example in read(path).examples] == [f"{path}:1", f"{path}:3"]
    path = put(tmp_path, "t.json", '[\n{"text": "a"},\n\n{"text":\n"b"}, {"text": "c"}]')
    assert [example.origin for example in read(path).examples] == [f"{path}:2", f"{path}:4", f"{path}:5"]
    path = put(tmp_path, "t.csv", 'text\n"a\nb"\nc\n')
    assert [example.origin for example in read(path).examples] == [f"{path}:2", f"{path}:4"]


def test_empty_answers_are_dropped_with_their_lines(tmp_path):
    path = put(tmp_path, "t.jsonl", GOOD + b'{"prompt": "a", "completion": ""}\n')
    data = read(path)
    assert data.read == data.used + len(data.dropped) == 2
    assert (data.dropped[0].origin, data.dropped[0].reason) == (f"{path}:2", "empty completion")


def test_every_problem_of_a_file_is_reported_at_once(tmp_path):
    path = put(tmp_path, "t.jsonl", b'{"text": 1,}\n{"text": "a"}\n{"text": NaN}\n')
    with pytest.raises(DataError) as caught:
        read(path)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "3"]


def test_parquet_rows_are_read_and_numbered(tmp_path):
    path = tmp_path / "t.parquet"
    turns = [{"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "Yo", "name": None}]
    pq.write_table(pa.table({"messages": [turns, turns[:1]], "score": [float("nan"), 1.0]}), path)
    data = read(path)
    assert learned(Bytes(), data[0]) == "Yo</s>"
    assert data.dropped[0].origin == f"{path}:2"


def calling(name, arguments):
    """A row of one tool, whose parameters are those of its call."""
    properties = {key: {"type": "string", "enum": [value, None]} for key, value in arguments.items()}
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "tools": [{"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}],
        "messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": [call]}],
    }


def test_tools_and_calls_are_the_same_from_columns_which_give_each_the_fields_of_all(tmp_path, monkeypatch):
    rows = [calling("look", {"word": "sea"}), calling("go", {"place": "home", "by": "foot"}), calling("stop", {})]
    for each in rows:
        each["score"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    filled = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert filled[0]["tools"][0]["function"]["parameters"]["properties"]["place"] is None, "as a column keeps it"
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *names, split: filled))
    put(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)))
    chats = {}
    for source in (f"{tmp_path}/t.jsonl", f"{tmp_path}/t.parquet", "hub:a/b"):
        found, _ = rows_of(DataConfig(train=source))
        assert all("score" in row.fields for row in found), "a field of the row itself stays"
        chats[source] = [understand(row.fields, "messages") for row in found]
    plain, *columns = chats.values()
    assert columns == [plain, plain]


def test_a_null_in_parquet_is_named_by_row_and_field(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(DataError, match=r"t\.parquet:2: field 'text': text, not null"):
        read(path)


letters = st.text(st.sampled_from('ab,"\n\r\té '), max_size=6)


@given(st.lists(st.tuples(letters, letters), min_size=1, max_size=6), st.sampled_from([",", "\t"]))
def test_csv_is_read_as_python_writes_it(records, separator):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "completion"), *records])
    problems = Problems()
    found = list(csv_records(text.getvalue(), separator, "t.csv", problems))
    assert problems.lines == []
    assert [tuple(fields.values()) for _, fields in found] == records


@given(st.text('ab,"\n\r', max_size=30))
def test_csv_of_any_text_is_records_or_problems_never_another_error(text):
    problems = Problems()
    for line, fields in csv_records(text, ",", "t.csv", problems):
        assert 1 < line <= text.count("\n") + text.count("\r") + 1
        assert all(fields)


@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_one_data_error(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.jsonl", "any.json", "any.csv", "any.txt", "any.parquet"):
        try:
            data = read(put(folder, name, content))
            assert data.read == data.used + len(data.dropped)
        except DataError:
            continue


def test_reading_is_not_quadratic(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": f"{i}!"}) + "\n" for i in range(20_000)))
    start = time.process_time()
    assert read(path).used == 20_000
    # Half a second of processor time where it was measured; a second pass over what was read, per row, takes minutes.
    assert time.process_time() - start < 10
