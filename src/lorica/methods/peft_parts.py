"""Where PEFT puts tensors for weights that their module reads itself: under the module, one wrapper inside the other.

nn.MultiheadAttention, both of its projections at once:
    attn.in_proj_weight             attn.lora_A.weight
    attn.out_proj                   attn.base_layer.out_proj.lora_A.weight
experts (`target_parameters`), the parameter that the module defines last being the outermost:
    experts.down_proj               experts.lora_A.weight
    experts.gate_up_proj            experts.base_layer.lora_A.weight
"""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorica.methods.targets import ends, matches, select
from lorica.site import Site

IN, OUT = ".in_proj_weight", ".out_proj"
WITHIN = ".base_layer"


def place(site: Site, around: Mapping[str, Sequence[str]]) -> str:
    """The path under which PEFT has the low-rank tensors of a site; `around` has every adapted site's neighbours."""
    if site.kind == "experts":
        held = around[site.name]
        return site.part_of + WITHIN * (len(held) - 1 - held.index(site.name))
    return moved(site.name, around)


def moved(name: str, around: Container[str]) -> str:
    """The path of a projection of nn.MultiheadAttention whose other projection is adapted too; others stay."""
    owner, _, leaf = name.rpartition(".")
    if not owner or owner + IN not in around or owner + OUT not in around:
        return name
    return {"in_proj_weight": owner, "out_proj": owner + WITHIN + OUT}.get(leaf, name)


def located(places: Collection[str], config: Mapping[str, Any], sites: Sequence[Site] = ()) -> dict[str, str]:
    """The site that each path of low-rank tensors means.

    Which parameters of a module are adapted is in the config, and their order in the base.  Without `sites` it is the
    config's, with those called down last, as every family of transformers defines them.
    """
    known = {site.name for site in sites}
    experts = _of_sites(listed(config), sites) if sites else _of_names(listed(config))
    return {path: path if path in known else _site(path, places, experts) for path in places}


def with_owners(sites: Sequence[Site]) -> list[Site]:
    """Sites read off a file, those of an nn.MultiheadAttention known as its parts by their neighbours' names."""
    owners = {site.owner for site in sites if site.leaf.endswith("_proj_weight")}
    parts = [site.owner for site in sites]
    return [replace(site, part_of=of) if of in owners else site for site, of in zip(sites, parts, strict=True)]


def listed(config: Mapping[str, Any]) -> list[str]:
    """`target_parameters` of a config."""
    given = config.get("target_parameters")
    return [name for name in given if isinstance(name, str)] if isinstance(given, list | tuple | set) else []


def _site(path: str, places: Collection[str], experts: Mapping[str, list[str]]) -> str:
    if path.endswith(WITHIN + OUT):
        return path.removesuffix(WITHIN + OUT) + OUT
    if path + WITHIN + OUT in places:
        return path + IN
    owner = path
    while owner.endswith(WITHIN):
        owner = owner.removesuffix(WITHIN)
    depth = (len(path) - len(owner)) // len(WITHIN)
    names = next((experts[end] for end in ends(owner) if end in experts), [])
    return f"{owner}.{names[-1 - depth]}" if depth < len(names) else path


def _of_sites(targets: Collection[str], sites: Sequence[Site]) -> dict[str, list[str]]:
    """The adapted parameters of each module that holds experts, in the order in which it defines them."""
    wanted, found = set(targets), dict[str, list[str]]()
    for site in sites:
        if site.kind == "experts" and not wanted.isdisjoint(ends(site.name)):
            found.setdefault(site.part_of, []).append(site.leaf)
    return found


def _of_names(targets: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for target in targets:
        owner, _, leaf = target.rpartition(".")
        found.setdefault(owner or "experts", []).append(leaf)
    return {owner: sorted(leaves, key=lambda leaf: "down" in leaf) for owner, leaves in found.items()}


def as_modules(adapted: Sequence[Site]) -> list[Site]:
    """The sites that PEFT's `target_modules` names: both projections of an nn.MultiheadAttention are the module."""
    names = {site.name for site in adapted}
    whole = {site.part_of for site in adapted if site.bare and site.kind == "linear" and site.part_of + OUT in names}
    kept = [site for site in adapted if site.kind != "experts" and site.part_of not in whole]
    return [*kept, *(replace(site, name=site.part_of) for site in adapted if site.bare and site.part_of in whole)]


def target_parameters(adapted: Sequence[Site], others: Collection[str]) -> list[str]:
    """Names that choose the parameters of these experts and no other, with the module's own name in each."""
    chosen = {site.name for site in adapted}
    left = [name for name in others if name not in chosen]
    names = (_shortest(site.name, left) for site in adapted)
    return list(dict.fromkeys(names))


def _shortest(path: str, others: Sequence[str]) -> str:
    candidates = [end for end in reversed(list(ends(path))) if "." in end]
    return next((end for end in candidates if not any(matches(other, end) for other in others)), path)


def whole(site: Site) -> str:
    """The module by whose name a pattern of ranks means a site too: PEFT has one rank for both projections of an
    attention."""
    return site.part_of if site.kind == "linear" else ""


def beside(
    config: Mapping[str, Any], targets: str | Sequence[str], sites: Sequence[Site]
) -> tuple[Sequence[str], list[str]]:
    """The modules that a config with `target_parameters` adapts as well, by name, and the complaints: a preset is
    spelled out on the base."""
    if not isinstance(targets, str):
        return targets, []
    if config.get("target_modules") is not None and not config["target_modules"]:
        return (), []
    if not sites:
        return (), ["target_modules: a preset beside target_parameters; give the config to lorica.attach"]
    return [site.name for site in select(sites, targets).sites], []
