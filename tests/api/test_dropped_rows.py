"""No row is left out without a word: a score says how many it says nothing of, and data which and why."""

import pytest

import lorica
from lorica.api.lessons import from_anything
from lorica.data import DataConfig

ROWS = [{"prompt": "two and two ", "completion": "four"}, {"prompt": "long " * 4000, "completion": "x"}]


@pytest.fixture(scope="module")
def model():
    return lorica.load_base("embedded")


def test_a_score_says_of_how_many_rows_it_says_nothing(model):
    score = lorica.evaluate(None, ROWS, model=model)
    assert score.metrics["rows"] == 1
    assert score.to_dict()["dropped"] == 1
    assert "longer than" in str(score).splitlines()[-1]
    assert "dropped" not in lorica.evaluate(None, ROWS[:1], model=model).to_dict()


def test_every_reason_is_counted_with_the_first_of_its_rows(model):
    empty = {"prompt": "nothing ", "completion": ""}
    data = from_anything(model, [*ROWS, ROWS[1], empty], DataConfig(train="rows"))
    first, second = data.why_dropped.split("; ")
    assert first.startswith("2 longer than ")
    assert first.endswith("tokens (the first is rows[1])")
    assert second.endswith("(the first is rows[3])")
