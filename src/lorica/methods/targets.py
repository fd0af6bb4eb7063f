"""Which linears a method adapts: `target_modules` as a preset, a list of names or a glob.

    "minimal" q,v    "qkv"    "attention" q,k,v,o    "all-linear" everything but the head (the default)
    a list           names matched as PEFT matches them: the whole path, or its end after a dot
    another string   a glob over the whole path

An entry that matches nothing is an error that names the nearest sites.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lorica.errors import TargetError, did_you_mean
from lorica.site import Site

PRESETS: dict[str, frozenset[str] | None] = {
    "minimal": frozenset("qv"),
    "qkv": frozenset("qkv"),
    "attention": frozenset("qkvo"),
    "all-linear": None,
}
HEAD = "head"


@dataclass(frozen=True)
class Selection:
    """The chosen sites in the base's order, and the roles a preset adapts beyond those it names (fused layers)."""

    sites: tuple[Site, ...]
    beyond: tuple[str, ...] = ()


def select(sites: Sequence[Site], target_modules: str | Sequence[str], kinds: Sequence[str] = ("linear",)) -> Selection:
    """The sites that `target_modules` means; TargetError naming every entry that matches nothing."""
    candidates = [site for site in sites if site.kind in kinds]
    if isinstance(target_modules, str) and target_modules in PRESETS:
        return _preset(candidates, target_modules)
    if isinstance(target_modules, str):
        chosen = [site for site in candidates if fnmatchcase(site.name, target_modules)]
        return Selection(tuple(_matched(chosen, [target_modules] if not chosen else [], candidates)))
    unmatched = [name for name in target_modules if not any(matches(site.name, name) for site in candidates)]
    chosen = [site for site in candidates if any(matches(site.name, name) for name in target_modules)]
    return Selection(tuple(_matched(chosen, unmatched, candidates)))


def matches(path: str, name: str) -> bool:
    """PEFT's rule for lists: the whole path, or its end after a dot."""
    return path == name or path.endswith("." + name)


def _preset(candidates: list[Site], preset: str) -> Selection:
    roles = PRESETS[preset]
    linears = [site for site in candidates if site.kind == "linear" and HEAD not in site.roles]
    if roles is None:
        return Selection(tuple(_matched(linears, [] if linears else [preset], candidates)))
    chosen = [site for site in linears if roles.intersection(site.roles)]
    missing = [] if chosen else [preset]
    beyond = sorted({role for site in chosen for role in site.roles} - roles)
    return Selection(tuple(_matched(chosen, missing, candidates)), tuple(beyond))


def _matched(chosen: list[Site], unmatched: list[str], candidates: list[Site]) -> list[Site]:
    if unmatched:
        raise TargetError.of([_unmatched(name, candidates) for name in unmatched])
    return chosen


def _unmatched(name: str, candidates: list[Site]) -> str:
    leaves = sorted({site.leaf for site in candidates})
    near = did_you_mean(name, [*leaves, *PRESETS], count=3) or "; it has " + ", ".join(leaves[:12])
    return f"target_modules: {name!r} matches no site of this base{near}"
