"""Which linears a method adapts: `target_modules` as a preset, a list of names or a glob.

    "minimal" q,v    "qkv"    "attention" q,k,v,o    "all-linear" everything but the head (the default)
    "kv-ffn" k, v and the last linear of the MLP
    a list           names matched as PEFT matches them: the whole path, or its end after a dot
    another string   a glob over the whole path

Presets mean linears.  Convolutions and the weights of experts are adapted where a list or a glob names them; the name
of a module that reads its weights itself (nn.MultiheadAttention, experts) means all of these.

An entry that matches nothing is an error that names the nearest sites.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lorica.errors import TargetError, did_you_mean
from lorica.site import Site

PRESETS: dict[str, frozenset[str] | None] = {
    "minimal": frozenset("qv"),
    "qkv": frozenset("qkv"),
    "kv-ffn": frozenset({"k", "v", "down", "fc2"}),
    "attention": frozenset("qkvo"),
    "all-linear": None,
}
HEAD = "head"


@dataclass(frozen=True)
class Selection:
    """The chosen sites in the base's order, how many each entry chose, and the roles a preset adapts beyond those it
    names (fused layers)."""

    sites: tuple[Site, ...]
    counts: Mapping[str, int]
    beyond: tuple[str, ...] = ()


def select(sites: Sequence[Site], target_modules: str | Sequence[str], kinds: Sequence[str] = ("linear",)) -> Selection:
    """The sites that `target_modules` means; TargetError naming every entry that matches nothing."""
    candidates = [site for site in sites if site.kind in kinds]
    if isinstance(target_modules, str) and target_modules in PRESETS:
        return _preset(candidates, target_modules)
    glob = isinstance(target_modules, str)
    entries = dict.fromkeys([target_modules] if isinstance(target_modules, str) else target_modules)
    fitting = [(site, tuple(_fitting(site, entries, glob))) for site in candidates]
    found = Counter(entry for _, fit in fitting for entry in fit)
    counts = {entry: found[entry] for entry in entries}
    _require_matches(counts, candidates)
    return Selection(tuple(site for site, fit in fitting if fit), counts)


def _fitting(site: Site, entries: Collection[str], glob: bool) -> Iterator[str]:
    """The entries that choose a site; names are looked up by its ends, since a file can name 10,000 of them."""
    if glob:
        return (entry for entry in entries if fnmatchcase(site.name, entry) or fnmatchcase(site.part_of, entry))
    names = {*ends(site.name), *(ends(site.part_of) if site.part_of else ())}
    return (name for name in names if name in entries)


def ends(path: str) -> Iterator[str]:
    """The names that match a path: itself, and what follows each of its dots."""
    yield path
    while "." in path:
        path = path.partition(".")[2]
        yield path


def matches(path: str, name: str) -> bool:
    """PEFT's rule for lists: the whole path, or its end after a dot."""
    return path == name or path.endswith("." + name)


def within(path: str, name: str) -> bool:
    """Whether a module is the one of this name, or stands in it."""
    return matches(path, name) or f".{name}." in f".{path}."


def shortest_names(chosen: Collection[Site], others: Collection[str]) -> list[str]:
    """The shortest names that choose exactly these sites among `others` (paths of everything that stays as it is),
    so that a config reads `q_proj` rather than 32 paths."""
    names = {_shortest(site.name, others) for site in chosen}
    return sorted(names)


def _shortest(path: str, others: Collection[str]) -> str:
    parts = path.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next((end for end in ends if not end[0].isdigit() and not any(matches(o, end) for o in others)), path)


def _preset(candidates: list[Site], preset: str) -> Selection:
    roles = PRESETS[preset]
    linears = [site for site in candidates if site.kind == "linear" and HEAD not in site.roles]
    chosen = linears if roles is None else [site for site in linears if roles.intersection(site.roles)]
    _require_matches({preset: len(chosen)}, candidates)
    beyond = {role for site in chosen for role in site.roles} - (roles or {role for s in chosen for role in s.roles})
    return Selection(tuple(chosen), {preset: len(chosen)}, tuple(sorted(beyond)))


def _require_matches(counts: Mapping[str, int], candidates: list[Site]) -> None:
    problems = [_unmatched(entry, candidates) for entry, count in counts.items() if not count]
    if not counts:
        problems = ["target_modules: names nothing; give a preset, a list of names or a glob"]
    if problems:
        raise TargetError.of(problems)


def _unmatched(name: str, candidates: list[Site]) -> str:
    leaves = sorted({site.leaf for site in candidates})
    if name in PRESETS:
        return f"target_modules: {name!r} finds no layer by its role in this base; name some: {', '.join(leaves[:12])}"
    near = did_you_mean(name, [*leaves, *PRESETS], count=3) or "; it has " + ", ".join(leaves[:12])
    return f"target_modules: {name!r} matches no site of this base{near}"
