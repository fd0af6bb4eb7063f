"""Statistic: what a start reads of the training data before anything is attached.

    for sites in statistic.passes():            each pass goes over the rows once
        for row in rows:
            statistic.see(site, x, g)           for each of these sites: x (..., d_in), g (..., d_out) or None
    statistic.factors()                         {"SITE.A": tensor, ...}

The factors are what modules start from, by the name of the site and of the parameter.  They are plain tensors, so that
a checkpoint holds them and a resumed run does not collect them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lorica.site import Site


@dataclass(frozen=True)
class Adapted:
    """A site and the rank that its module is planned with."""

    site: Site
    r: int


class Statistic(Protocol):
    @property
    def rows(self) -> int:
        """How many rows of the training data are read at most."""
        ...

    @property
    def gradients(self) -> bool:
        """Whether `see` is given gradients."""
        ...

    @property
    def done(self) -> bool:
        """Whether more rows of this pass would change nothing that matters."""
        ...

    def passes(self) -> Iterator[tuple[Site, ...]]:
        """The sites that are watched in each pass over the rows."""
        ...

    def see(self, site: Site, x: Tensor, g: Tensor | None) -> None:
        """The inputs of one layer for some tokens, and the gradients of the loss by its outputs."""
        ...

    def factors(self) -> dict[str, Tensor]: ...
