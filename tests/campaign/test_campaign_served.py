"""The judge of the campaign on serving: what it must let pass, and what it must not."""

from types import SimpleNamespace

import pytest

from campaign.served import Answered, Standing, problem, verdict

REFERENCES = {("old", "p"): "one", ("new", "p"): "two", ("other", "p"): "three"}


def standing() -> Standing:
    """Old until the change between 10 and 20, new until it goes between 30 and 40."""
    found = Standing()
    found.spans = [(0.0, 20.0, "old"), (10.0, 40.0, "new"), (30.0, float("inf"), None)]
    return found


def answer(begin: float, end: float, text: str | None, status: int = 200) -> Answered:
    return Answered("n0", "p", begin, end, status, text)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (answer(1, 5, "one"), None),
        (answer(5, 15, "one"), None),
        (answer(5, 15, "two"), None),
        (answer(21, 25, "one"), "is of ['old']"),
        (answer(1, 5, "two"), "is of ['new']"),
        (answer(1, 5, "three"), "is of ['other']"),
        (answer(1, 5, "onetwo"), "nobody"),
        (answer(1, 5, ""), "nobody"),
        (answer(1, 5, None), None),
        (answer(35, 36, None, 404), None),
        (answer(21, 25, None, 404), "stood all the time"),
        (answer(1, 5, None, 503), None),
        (answer(1, 5, None, 500), "status 500"),
        (answer(45, 46, "two"), "is of ['new']"),
    ],
    ids=str,
)
def test_an_answer_is_of_an_adapter_that_stood_under_its_name(given: Answered, wrong: str | None) -> None:
    found = problem(given, standing(), REFERENCES)
    assert found is None if wrong is None else found is not None and wrong in found


def test_growth_and_nothing_compared_are_no_success() -> None:
    facts = {"seconds": 1.0, "failed": [], "changes": {}, "standing": {"n0": standing()}}
    whole, cut_off = [answer(1, 5, "one")], [answer(1, 5, None)]

    def ok(answers: list[Answered], held: list[int]) -> bool:
        return verdict(SimpleNamespace(**facts, answers=answers, held=held), REFERENCES)["ok"]  # type: ignore[arg-type]

    assert ok(whole, [100] * 10)
    assert not ok(whole, [100] * 9 + [1 << 30])
    assert not ok(cut_off, [100] * 10)
