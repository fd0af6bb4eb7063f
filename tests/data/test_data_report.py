"""The report adds up, finds doubles and leaks, and shows the mask token by token."""

import json
from itertools import pairwise

from byte_tokenizer import Bytes
from hypothesis import given
from hypothesis import strategies as st

from lorica.data import DataConfig, DataReport, from_rows
from lorica.data.report import histogram

ROWS = [("a", "b"), ("a", "c"), ("a", "b"), ("a", ""), ("a", "d" * 40), ("a", "b")]


def data(pairs):
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    return from_rows(rows, Bytes(), limit=20)


def test_read_is_used_and_dropped_with_reasons_and_the_first_of_each():
    report = DataReport.of(data(ROWS), None, Bytes()).to_dict()
    assert (report["read"], report["used"]) == (6, 4)
    assert report["dropped"] == {
        "empty completion": {"count": 1, "first": ["rows[3]"]},
        "longer than 20 tokens": {"count": 1, "first": ["rows[4]"]},
    }
    assert (report["tokens"], report["label_tokens"]) == (16, 8)


def test_doubles_are_the_rows_that_equal_an_earlier_one():
    report = DataReport.of(data(ROWS), None, Bytes())
    assert (report.duplicates.count, report.duplicates.first) == (2, ("rows[2]", "rows[5]"))


def test_leaks_are_the_evaluation_s_rows_that_are_trained_on():
    report = DataReport.of(data(ROWS), data([("x", "y"), ("a", "c")]), Bytes())
    assert (report.leakage.count, report.leakage.first) == (1, ("rows[1]",))
    assert report.eval is not None
    assert report.eval.read == 2
    assert "leaks     1 (rows[1])" in str(report)


def test_the_first_rows_are_shown_token_by_token_with_the_mask():
    report = DataReport.of(data([("a", "é\n")]), None, Bytes())
    assert report.to_dict()["preview"][0]["tokens"][:2] == [
        {"id": 256, "text": "<s>", "label": False},
        {"id": 97, "text": "a", "label": False},
    ]
    assert "rows[0]: <s>|a|«<195>|<169>|\\n|</s>»" in str(report)


def test_control_characters_of_the_data_do_not_reach_the_terminal():
    shown = str(DataReport.of(data([("\x1b[31m", "\u202e\r")]), None, Bytes()))
    assert all(char.isprintable() or char == "\n" for char in shown)


@given(st.lists(st.integers(1, 5000), max_size=30))
def test_the_histogram_counts_each_length_once_without_gaps(lengths):
    buckets = histogram(lengths)
    assert [each.count for each in buckets] == [sum(b.low <= n <= b.high for n in lengths) for b in buckets]
    assert sum(each.count for each in buckets) == len(lengths)
    assert all(before.high + 1 == after.low for before, after in pairwise(buckets))


def test_a_report_is_json_even_when_nothing_is_used():
    report = DataReport.of(data([("a", "")]), None, Bytes())
    assert json.loads(json.dumps(report.to_dict()))["used"] == 0
    assert "1 rows read = 0 used + 1 dropped" in str(report)


def test_the_config_refuses_unknown_keys_and_impossible_shares():
    for wrong in ({"trian": "x"}, {"train": ""}, {"train": []}, {"train": "x", "eval": {"share": 1.0}}):
        try:
            DataConfig.model_validate(wrong)
        except ValueError:
            continue
        raise AssertionError(f"{wrong} was taken")
