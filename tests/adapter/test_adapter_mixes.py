"""Numbers of mixes: each stands for one mix for ever, and there are never more than so many."""

import pytest
import torch

from lorica.adapter import mixes
from lorica.errors import AdapterError


def test_a_number_is_of_one_mix_and_is_never_given_again() -> None:
    held = mixes.Mixes()
    first = held.number((("a", 1.0),))
    assert held.number((("a", 1.0),)) == first
    assert held.number(()) == mixes.BASE
    held.forget("a")
    assert held.number((("a", 1.0),)) != first
    with pytest.raises(AdapterError, match="removed"):
        held.of(first)


def test_blends_of_ever_new_weights_take_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixes, "MOST", 8)
    held = mixes.Mixes()
    kept = held.number((("a", 1.0),))
    for weight in range(100):
        held.number((("a", weight / 100), ("b", 1.0)))
        assert held.number((("a", 1.0),)) == kept
    assert len(held._numbers) == len(held._mixes) == 8
    assert held.of(kept) == (("a", 1.0),)
    assert held.of(mixes.BASE) == ()


def test_a_route_is_read_once() -> None:
    held, route = mixes.Mixes(), torch.tensor([0, -1])
    assert held.rows(route) is held.rows(route)
    assert held.rows(None) == ()
