"""What is asked of the engine is checked as a whole, before it is taken."""

import pytest

from lorica.errors import RequestError
from lorica.serve.engine import Limits, Request


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", ()),
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("logprobs", -1),
        ("logprobs", 21),
        ("deadline", 0.0),
        ("deadline", float("nan")),
        ("choice", {}),
        ("choice", {"sql": float("nan")}),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(RequestError, match=field):
        Request(**{"tokens": (1,), "max_tokens": 1, field: value})


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(RequestError) as error:
        Request(tokens=(), max_tokens=0, top_p=2.0, choice={})
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize("field", ["running", "queue", "prompt_chunk", "prompt_alone", "cache_bytes", "context"])
def test_a_limit_below_one_is_refused(field):
    with pytest.raises(RequestError, match=field):
        Limits(**{field: 0})
