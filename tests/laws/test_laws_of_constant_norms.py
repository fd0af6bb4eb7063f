"""DoRA's gradient takes the norm for a constant: with the norm really held, its gradients are slopes like others'."""

from typing import Any

import pytest
from table import ROWS
from torch import Tensor

import laws
from lorica.methods import dora
from tiny_bases import LLAMA, Base

CASES = [(base, row) for row in ROWS if isinstance(row.method, dora.DoRA) for base in row.bases]


@pytest.mark.parametrize(("base", "row"), CASES, ids=[f"{row}-{base}" for base, row in CASES])
def test_gradients_are_slopes_where_the_norm_stays_what_it_was(base: Base, row: Any, monkeypatch: pytest.MonkeyPatch):
    norms: dict[int, tuple[Tensor, Tensor]] = {}

    def held(weight: Any, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        return norms.setdefault(id(B), (row_norms(weight, squares, A, B, scale), B))[0]  # a B that lives keeps its id

    row_norms = dora.row_norms
    monkeypatch.setattr(dora, "row_norms", held)
    laws.gradients_are_slopes(base, row.method)


def test_with_the_norm_that_follows_they_are_not():
    with pytest.raises(AssertionError, match=r"gradient .* slope"):
        laws.gradients_are_slopes(LLAMA, next(row.method for row in ROWS if row.name == "dora"))
