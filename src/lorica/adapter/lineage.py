"""Lineage: which adapters an adapter was made from, by the digests of their tensors.

    lorica.json   made      trained | continued | merged | combined | resized
                  parents   [{digest: SHA-256 of the parent's adapter_model.safetensors, source: where it lay,
                              weight: of its delta, where several were combined}]

A parent is followed only where a folder with that digest is found: at the recorded place, or beside the child.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorica import durable
from lorica.errors import LoricaError

NAME, TENSORS = "lorica.json", "adapter_model.safetensors"
Made = Literal["trained", "continued", "merged", "combined", "resized"]
DEPTH, NEIGHBOURS = 32, 500


@dataclass(frozen=True)
class Parent:
    """One adapter that another was made from, and the weight of its delta in it, where there was one."""

    digest: str | None
    source: str | None
    weight: float | None = None

    @classmethod
    def of(cls, value: Any) -> "Parent":
        """From an entry of lorica.json; a bare text names a source."""
        if not isinstance(value, Mapping):
            return cls(None, str(value))
        digest, source, weight = value.get("digest"), value.get("source"), value.get("weight")
        known = weight if isinstance(weight, float) and math.isfinite(weight) else None
        return cls(str(digest) if digest else None, str(source) if source else None, known)

    def to_dict(self) -> dict[str, Any]:
        weight = {} if self.weight is None else {"weight": self.weight}
        return {"digest": self.digest, "source": self.source, **weight}


def facts(made: Made, parents: Sequence[Parent]) -> dict[str, Any]:
    """What `save` records of an adapter made from these."""
    return {"made": made, "parents": [parent.to_dict() for parent in parents]}


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """An adapter and, as far as they are found here, those it was made from; `weight` is its own in its child."""

    name: str
    digest: str | None
    made: str | None
    base: str | None
    found: bool
    parents: tuple["Lineage", ...] = ()
    weight: float | None = None

    @classmethod
    def of(cls, folder: Path, name: str | None = None) -> "Lineage":
        """The tree above the adapter in `folder`, from the lorica.json of each that is found."""
        return _followed(folder, name or str(folder), _manifest(folder), seen=frozenset())

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "made": self.made,
            "base": self.base,
            "found": self.found,
            **({} if self.weight is None else {"weight": self.weight}),
            "parents": [parent.to_dict() for parent in self.parents],
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The tree, a line an adapter."""
        yield self._line()
        for index, parent in enumerate(self.parents):
            last = index == len(self.parents) - 1
            first, *rest = parent.lines()
            yield f"{'└─' if last else '├─'} {first}"
            yield from (f"{'   ' if last else '│  '}{line}" for line in rest)

    def _line(self) -> str:
        share = "" if self.weight is None else f"{self.weight:g} x"
        told = [share, self.name, self.digest[:12] if self.digest else "", self._how()]
        return "  ".join(word for word in told if word)

    def _how(self) -> str:
        if not self.found:
            return "not found here"
        on = f" on {self.base}" if self.base and not self.parents else ""
        return f"{self.made or ('made from others' if self.parents else 'trained')}{on}"


def digest_of(manifest: Mapping[str, Any]) -> str | None:
    """The recorded digest of an adapter's tensors."""
    record = (manifest.get("files") or {}).get(TENSORS)
    digest = record.get("sha256") if isinstance(record, Mapping) else None
    return digest if isinstance(digest, str) else None


def parents_of(manifest: Mapping[str, Any]) -> tuple[Parent, ...]:
    named = manifest.get("parents")
    return tuple(map(Parent.of, named)) if isinstance(named, list) else ()


def _followed(folder: Path, name: str, manifest: Mapping[str, Any], seen: frozenset[str]) -> Lineage:
    digest, base = digest_of(manifest), manifest.get("base")
    made = manifest.get("made")
    seen = seen | {digest or name}
    return Lineage(
        name=name,
        digest=digest,
        made=made if isinstance(made, str) else None,
        base=base.get("source") if isinstance(base, Mapping) else None,
        found=True,
        parents=tuple(replace(_parent(p, folder, seen), weight=p.weight) for p in parents_of(manifest)),
    )


def _parent(parent: Parent, child: Path, seen: frozenset[str]) -> Lineage:
    """No adapter is its own ancestor: a circle in what folders say of each other ends where it closes."""
    place = None if parent.digest is None or parent.digest in seen or len(seen) > DEPTH else _find(parent, child)
    if place is None:
        return Lineage(name=parent.source or "an adapter", digest=parent.digest, made=None, base=None, found=False)
    return _followed(place, str(place), _manifest(place), seen)


def _find(parent: Parent, child: Path) -> Path | None:
    """The folder with the parent's digest."""
    return next((place for place in _places(parent, child) if digest_of(_manifest(place)) == parent.digest), None)


def _places(parent: Parent, child: Path) -> Iterator[Path]:
    """Where it was; then beside the child, and beside its run: `runs/*/adapter` for `runs/NAME/adapter`."""
    if parent.source:
        yield Path(parent.source)
    child = child.absolute()
    beside = [path for _, path in zip(range(NEIGHBOURS), _folders(child.parent), strict=False)]
    runs = [path / child.name for _, path in zip(range(NEIGHBOURS), _folders(child.parent.parent), strict=False)]
    yield from (*beside, *runs)


def _folders(place: Path) -> Iterator[Path]:
    try:
        yield from (path for path in sorted(place.iterdir()) if path.is_dir())
    except OSError:
        return


def _manifest(folder: Path) -> Mapping[str, Any]:
    """lorica.json of a folder; empty where there is none that can be read."""
    try:
        value = durable.read_json(folder / NAME) if (folder / NAME).is_file() else {}
    except (LoricaError, OSError):
        return {}
    return value if isinstance(value, Mapping) else {}
