"""How many rows there are, about, without reading them all."""

import pytest

from lorica.data import DataConfig
from lorica.data import size as sizes


def test_lines_are_counted_and_large_files_are_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "SEEN", 1000)
    (tmp_path / "small.jsonl").write_text(30 * '{"text": "x"}\n')
    (tmp_path / "large.jsonl").write_text(5000 * '{"text": "x"}\n')
    assert sizes.rows_about(DataConfig(train=str(tmp_path / "small.jsonl"))) == 30
    both = sizes.rows_about(DataConfig(train=str(tmp_path / "*.jsonl")))
    assert both == pytest.approx(5030, rel=0.02)


def test_what_cannot_be_known_from_outside_is_not_guessed(tmp_path):
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    for source in (str(tmp_path / "notes.txt"), "hub:owner/name", "python:stdlib", str(tmp_path / "not-there.jsonl")):
        assert sizes.rows_about(DataConfig(train=source)) is None
