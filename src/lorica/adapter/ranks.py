"""Where the rank went: how many singular values each site kept, as a grid of roles and layers.

model.layers.3.self_attn.q_proj      layer 3, role self_attn.q_proj
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, eq=False)
class RankGrid:
    """kept: (role, layer) to the number of singular values; a site outside the layers has the layer ''."""

    roles: tuple[str, ...]
    layers: tuple[str, ...]
    kept: Mapping[tuple[str, str], int]

    @classmethod
    def of(cls, kept: Mapping[str, int]) -> Self:
        """From the names of sites, in the order they are given; layers by number."""
        placed = {_place(name): value for name, value in kept.items()}
        heads = {head for head, _, tail in placed if tail}
        found = {(_role(head, tail, len(heads) > 1), layer): value for (head, layer, tail), value in placed.items()}
        roles = tuple(dict.fromkeys(role for role, _ in found))
        layers = tuple(sorted({layer for _, layer in found}, key=lambda layer: (len(layer), layer)))
        return cls(roles, layers, found)

    @property
    def total(self) -> int:
        return sum(self.kept.values())

    @property
    def most(self) -> int:
        return max(self.kept.values(), default=0)

    def __str__(self) -> str:
        """A line a role, a column a layer."""
        width = max(map(len, self.roles))
        column = max(2, *(len(layer) for layer in self.layers), len(str(self.most)))
        rows = [("layer", self.layers), *((role, self._row(role)) for role in self.roles)]
        table = [
            f"  {name:<{width}}  {' '.join(cell.rjust(column) for cell in cells)}".rstrip() for name, cells in rows
        ]
        return "\n".join([f"singular values kept: {self.total} at {len(self.kept)} sites", *table])

    def _row(self, role: str) -> tuple[str, ...]:
        counts = (self.kept.get((role, layer)) for layer in self.layers)
        return tuple("" if count is None else str(count) for count in counts)


def _place(name: str) -> tuple[str, str, str]:
    """What stands before the number of the layer, the number, and what stands behind it."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if number is None:
        return name, "", ""
    return ".".join(parts[:number]), parts[number], ".".join(parts[number + 1 :])


def _role(head: str, tail: str, several: bool) -> str:
    """An encoder and a decoder have the same roles: what stands before the number tells them apart."""
    return ".".join(part for part in ((head if several or not tail else ""), tail) if part)
