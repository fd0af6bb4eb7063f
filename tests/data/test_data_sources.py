"""A source names files; what is held out of them depends on names, contents and a seed alone."""

import sys
import types

import pytest
from byte_tokenizer import Bytes, whole
from hypothesis import given
from hypothesis import strategies as st

from lorica.data import DataConfig, HoldOut, load
from lorica.data.rows import Row
from lorica.data.sources import HubSource, resolve
from lorica.data.split import split
from lorica.errors import DataError


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        path = tmp_path / "corpus" / f"part{number % 3}" / f"file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text number {number}")
    (tmp_path / "corpus" / ".hidden").write_text("no")
    (tmp_path / "corpus" / "part0" / "image.png").write_bytes(b"\x89PNG\0")
    return tmp_path / "corpus"


def read(train, held=None, **config):
    return load(DataConfig(train=train, eval=held, **config), Bytes(), limit=400)


def texts(data):
    return {whole(Bytes(), example) for example in data.examples}


def test_a_folder_is_its_files_and_those_that_are_no_text_are_dropped_by_name(corpus):
    data, held = read("corpus")
    assert held is None
    assert (data.read, data.used) == (11, 10)
    assert [(row.origin, row.reason) for row in data.dropped] == [("corpus/part0/image.png", "not UTF-8 text")]


def test_a_glob_takes_what_fits(corpus):
    assert read("corpus/**/*.txt")[0].read == 10
    assert {file.name for file in resolve("corpus/part1/*.txt")} == {f"corpus/part1/file{i}.txt" for i in (1, 4, 7)}


def test_sources_can_be_listed_but_no_file_named_twice(corpus):
    assert read(["corpus/part1", "corpus/part2"])[0].read == 6
    with pytest.raises(DataError, match=r"file1\.txt: named twice"):
        read(["corpus/part1", "corpus/**/*.txt"])


def test_an_evaluation_file_that_is_trained_on_is_refused(corpus):
    with pytest.raises(DataError, match="is trained on as well"):
        read("corpus/**/*.txt", "corpus/part1")


def test_a_folder_of_tables_and_texts_is_refused(corpus):
    (corpus / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="plain text and jsonl files lie together"):
        read("corpus")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("corpu", "no such file or folder; did you mean 'corpus'"),
        ("corpus/*.md", "no files there"),
        ("python:stdlb", "did you mean 'stdlib'"),
        ("hub:", "write hub:owner/name"),
        ("hub:a/b:c:d:e", "write hub:owner/name"),
    ],
)
def test_a_source_without_files_says_so(source, said, corpus):
    with pytest.raises(DataError, match=said):
        read(source)


def test_python_s_library_and_headers_are_named_sources():
    library = {file.relative for file in resolve("python:stdlib")}
    assert {"json/decoder.py", "os.py", "csv.py"} <= library
    assert not any("site-packages" in name or name.startswith("test/") for name in library)
    headers = resolve("python:include")
    assert len(headers) > 50
    assert all(file.path.suffix == ".h" for file in headers)


def test_headers_come_from_torch_where_python_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert any(file.relative == "core/ScalarType.h" for file in resolve("python:include"))


def test_files_are_held_out_whole_by_path_and_seed(corpus):
    train, held = read("corpus/**/*.txt", HoldOut(by="file", share=0.3))
    assert (len(train), len(held)) == (7, 3)
    assert texts(train).isdisjoint(texts(held))
    assert texts(read("corpus/**/*.txt", HoldOut(by="file", share=0.3))[1]) == texts(held)
    others = {frozenset(texts(read("corpus", HoldOut(by="file", share=0.3, seed=s))[1])) for s in range(8)}
    assert len(others) > 1


def test_where_the_folder_lies_does_not_change_what_is_held_out(corpus):
    before = read("corpus/**/*.txt", HoldOut(by="file", share=0.3))[1]
    corpus.rename(corpus.with_name("moved"))
    assert texts(read("moved", HoldOut(by="file", share=0.3))[1]) == texts(before)


def test_one_file_cannot_be_held_out_by_file(corpus):
    with pytest.raises(DataError, match="needs at least two files; use by: row"):
        read("corpus/part1/file1.txt", HoldOut(by="file"))


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_held_out_rows_are_the_share_asked_for_and_equal_rows_stay_together(numbers, share, seed):
    rows = [Row({"text": str(n)}, f"t:{i}", "t") for i, n in enumerate(numbers)]
    kinds = len(set(numbers))
    if kinds < 2:
        with pytest.raises(DataError, match="two different rows"):
            split(rows, HoldOut(share=share, seed=seed))
        return
    train, held = split(rows, HoldOut(share=share, seed=seed))
    assert sorted(train + held, key=rows.index) == rows
    apart = {row.fields["text"] for row in held}
    assert apart.isdisjoint(row.fields["text"] for row in train)
    assert len(apart) == min(max(1, round(share * kinds)), kinds - 1)
    assert train + held != held
    assert set(map(id, split(rows[::-1], HoldOut(share=share, seed=seed))[1])) == set(map(id, held))


def test_hub_sources_name_a_configuration_and_a_split():
    assert resolve("hub:a/b") == (HubSource("a/b"),)
    assert resolve("hub:a/b:test") == (HubSource("a/b", split="test"),)
    assert resolve("hub:a/b:en:test") == (HubSource("a/b", "en", "test"),)


def test_hub_rows_come_through_datasets(monkeypatch):
    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    data, held = read("hub:a/b:en:train", "hub:a/b:en:test")
    assert asked == [("a/b", "en", "train"), ("a/b", "en", "test")]
    assert data.examples[1].origin == "hub:a/b:en:train:2"
    assert held.read == 2


def test_without_a_connection_the_hub_is_one_line(monkeypatch):
    def load_dataset(*names, split):
        raise ConnectionError("could not reach it\nwith a long tail")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"^hub:a/b:train: cannot be loaded \(could not reach it\); check"):
        read("hub:a/b")


def test_without_the_extra_the_hub_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'lorica\[hub\]'"):
        read("hub:a/b")
