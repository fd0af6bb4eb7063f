"""What `lorica combine` and `lorica resize` show of the adapter that they made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorica.adapter.combine import How, Joined, Weighed, total_energy, total_error
from lorica.adapter.inspect import largest
from lorica.adapter.lineage import Parent
from lorica.adapter.resize import Cut, Size, energy_kept
from lorica.adapter.resize import total_error as error_of_cuts


@dataclass(frozen=True, eq=False, kw_only=True)
class Combined:
    """An adapter made of several.

    error       || made - blend || / || blend || of all sites as one vector; blend: the weighted sum of the deltas
    energy      share of the squared norm that the cut to the ranks left
    unproven    why no outputs were recorded; None where they were
    """

    folder: str
    how: How
    parents: tuple[Parent, ...]
    sites: tuple[Joined, ...]
    bytes: int
    unproven: str | None

    @classmethod
    def of(
        cls, folder: str, how: How, parts: Sequence[Weighed], sites: Sequence[Joined], size: int, unproven: str | None
    ) -> "Combined":
        parents = tuple(part.parent for part in parts)
        return cls(folder=folder, how=how, parents=parents, sites=tuple(sites), bytes=size, unproven=unproven)

    @property
    def error(self) -> float:
        return total_error(self.sites)

    @property
    def energy(self) -> float:
        return total_energy(self.sites)

    def to_dict(self) -> dict[str, Any]:
        return {
            "adapter": self.folder,
            **self.how.to_dict(),
            "adapters": [parent.to_dict() for parent in self.parents],
            "error": self.error,
            "energy": self.energy,
            "bytes": self.bytes,
            "proof": self.unproven is None,
            "unproven": self.unproven,
            "sites": [_joined_entry(site) for site in self.sites],
        }

    def __str__(self) -> str:
        blend = " + ".join(f"{parent.weight:g} x {parent.source}" for parent in self.parents)
        head = f"{self.folder}: {blend} by {self.how.name}, {len(self.sites)} sites, {self.bytes / 1e6:.2f} MB"
        away = f"  off the exact blend by {_share(self.error)}, energy kept by the ranks {self.energy:.2%}"
        rows = [("site", "shape", "rank", "error", "energy"), *map(_joined_row, self.sites)]
        return "\n".join([head, away, _proof_line(self.unproven), *_table(rows)])


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The loss on rows before and after, and by how much it may grow."""

    data: str
    before: float
    after: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """A loss that is not a number is not."""
        return self.after <= self.before + self.tolerance

    def to_dict(self) -> dict[str, Any]:
        return {"data": self.data, "before": self.before, "after": self.after, "tolerance": self.tolerance}

    def __str__(self) -> str:
        return f"the loss on {self.data} goes from {self.before:.4f} to {self.after:.4f}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Resized:
    """An adapter of other ranks than the one that it was made of; error and energy as in `Combined`."""

    folder: str
    parent: Parent
    size: Size
    sites: tuple[Cut, ...]
    bytes: int
    gate: Gate | None
    unproven: str | None

    @property
    def error(self) -> float:
        return error_of_cuts(self.sites)

    @property
    def energy(self) -> float:
        return energy_kept(self.sites)

    def to_dict(self) -> dict[str, Any]:
        return {
            "adapter": self.folder,
            "of": self.parent.to_dict(),
            "asked": self.size.to_dict(),
            "error": self.error,
            "energy": self.energy,
            "loss": None if self.gate is None else self.gate.to_dict(),
            "bytes": self.bytes,
            "proof": self.unproven is None,
            "unproven": self.unproven,
            "sites": [_cut_entry(site) for site in self.sites],
        }

    def __str__(self) -> str:
        head = f"{self.folder}: {self.parent.source} resized, {len(self.sites)} sites, {self.bytes / 1e6:.2f} MB"
        away = f"  off by {_share(self.error)}, energy kept {self.energy:.2%}"
        gate = [] if self.gate is None else [f"  {self.gate}"]
        rows = [("site", "shape", "rank", "error", "energy", "singular values"), *map(_cut_row, self.sites)]
        return "\n".join([head, away, *gate, _proof_line(self.unproven), *_table(rows)])


def combined_facts(how: How, sites: Sequence[Joined]) -> dict[str, Any]:
    """What lorica.json says of it."""
    return {"combined": {**how.to_dict(), "error": total_error(sites), "energy": total_energy(sites)}}


def resized_facts(size: Size, sites: Sequence[Cut], gate: Gate | None) -> dict[str, Any]:
    loss = {} if gate is None else {"loss": gate.to_dict()}
    return {"resized": {**size.to_dict(), "error": error_of_cuts(sites), "energy": energy_kept(sites), **loss}}


def _joined_entry(site: Joined) -> dict[str, Any]:
    return {**_entry(site), "norm": site.norm, "error": site.error, "energy": site.energy}


def _cut_entry(site: Cut) -> dict[str, Any]:
    told = {"before": site.before, "error": site.error, "energy": site.energy}
    return {**_entry(site), **told, "singular_values": list(site.spectrum)}


def _entry(site: Joined | Cut) -> dict[str, Any]:
    return {"name": site.site.name, "shape": list(site.site.shape), "rank": site.made.rank}


def _joined_row(site: Joined) -> tuple[str, ...]:
    return (*_place(site), str(site.made.rank), _share(site.error), f"{site.energy:.2%}")


def _cut_row(site: Cut) -> tuple[str, ...]:
    ranks = f"{site.before} -> {site.made.rank}"
    return (*_place(site), ranks, _share(site.error), f"{site.energy:.2%}", largest(site.spectrum))


def _place(site: Joined | Cut) -> tuple[str, str]:
    return site.site.name, " x ".join(map(str, site.site.shape))


def _share(value: float) -> str:
    """Rounding is told as such."""
    return f"{value:.2%}" if value >= 1e-4 or value == 0 else f"{value:.0e}"


def _proof_line(unproven: str | None) -> str:
    return "  outputs recorded; lorica verify proves it" if unproven is None else f"  no outputs recorded: {unproven}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    pads = (str.ljust, str.rjust, str.rjust, str.rjust, str.rjust, str.ljust)
    for row in rows:
        yield "  " + "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=False)).rstrip()
