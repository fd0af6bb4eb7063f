"""What the caller of a model has chosen for the forward passes inside a `with` block: who each batch row is.

Read once where a model is entered.  Our decoder then carries it in the Layout; a foreign model's modules, which take no
layout, read `current` at their own call, and recomputation under gradient checkpointing enters it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lorica.errors import RequestError
from lorica.kernels import Noise


@dataclass(frozen=True, eq=False)
class Pass:
    """noise: places of the batch rows in the training run, None in evaluation.  route: (rows,) int64 choice of a Bank
    for each batch row, or (1,) for all of them, -1 for the base; None without a Bank."""

    noise: Noise | None = None
    route: Tensor | None = None

    apart: ClassVar[bool] = False

    def route_of(self, rows: int) -> Tensor | None:
        """The choice of each of `rows` batch rows.  RequestError when there is neither one a row nor one for all."""
        if self.route is None or len(self.route) == rows:
            return self.route
        if len(self.route) != 1:
            raise RequestError(f"{len(self.route)} adapters are chosen for {rows} rows; give one, or one a row")
        return self.route.expand(rows)


current: ContextVar[Pass] = ContextVar("lorica_pass", default=Pass())  # noqa: B039  frozen, so sharing it is safe


@contextmanager
def entered(value: Pass) -> Iterator[None]:
    token = current.set(value)
    try:
        yield
    finally:
        current.reset(token)


class Clock:
    """Gives training forwards made outside our trainer their noise: the step counts them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0

    def tick(self, rows: Tensor) -> Noise:
        self.step += 1
        return Noise(self.seed, self.step, rows)
