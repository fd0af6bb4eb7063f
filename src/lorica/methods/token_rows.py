"""Rows of an embedding that are trained while all others stay:   W' = W with W'[t] = rows[t] for the tokens t named.

The rows replace the base's, as PEFT's trainable token indices do: the first row of a new token is arbitrary, and a
difference to it would mean something else on every base that is resized anew.  Only (n, d) values are saved.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import did_you_mean
from lorica.methods.contract import Start
from lorica.methods.targets import matches
from lorica.site import Site

Tokens = tuple[int, ...]
END = ".trainable_tokens_delta"
SUFFIX = f".token_adapter{END}"
"""What PEFT puts behind the path of the embedding in its files, by itself and in an adapter of another method."""


class TokenRows(nn.Module):
    """The module of an Instead edit that shows the base's own matrix with some rows exchanged.

    rows (n, d) in float32 or better, starting as the base's; forward() -> (V, d) in the base's type.
    """

    def __init__(self, tokens: Sequence[int], start: Start) -> None:
        super().__init__()
        assert start.parameter is not None
        self.base = (start.parameter,)  # in a tuple, since it is no parameter of this module, and moves with its own
        self.tokens = tuple(tokens)
        self.rows = nn.Parameter(start.parameter.detach()[list(tokens)].to(start.device, start.dtype, copy=True))

    def forward(self) -> Tensor:
        W = self.base[0].detach()
        return W.index_copy(0, torch.tensor(self.tokens, device=W.device), self.rows.to(W.dtype))


def chosen(
    asked: Tokens | Mapping[str, Tokens], sites: Sequence[Site], field: str = "trainable_token_indices"
) -> tuple[list[tuple[Site, Tokens]], list[str]]:
    """The parameters whose rows are trained, and what is wrong with `field`.  A plain list means the input embedding,
    and with it whatever is tied to it; a mapping names modules."""
    named = dict(asked) if isinstance(asked, Mapping) else {input_embedding(sites): asked} if asked else {}
    found, problems = [], []
    for name, tokens in named.items():
        places = [site for site in sites if site.kind == "parameter" and _is_matrix_of(site, name)]
        if len(places) == 1:
            found.append((places[0], tuple(tokens)))
            problems += [f"{field}: {problem}" for problem in _token_problems(places[0], tokens)]
        elif not (tied := _tied_head(sites, name)) or tokens not in [t for n, t in named.items() if n != name]:
            problems.append(f"{field}: {_lost(name, tied, places, sites)}")
    return found, problems


def remarks(asked: Tokens | Mapping[str, Tokens], sites: Sequence[Site]) -> tuple[str, ...]:
    """What the plan says of trained rows."""
    if not asked:
        return ()
    kept = [f"{name} is not tied: its rows for these tokens stay as they are" for name in untied_heads(asked, sites)]
    return ("embeddings: the named rows alone are trained and saved", *kept)


def untied_heads(asked: Tokens | Mapping[str, Tokens], sites: Sequence[Site]) -> list[str]:
    """Heads with a matrix of their own whose rows stay as they are, although those of the embedding are trained."""
    trained = {site.name for site, _ in chosen(asked, sites)[0]}
    own = [site for site in sites if site.kind == "linear" and "head" in site.roles and not _is_tied(sites, site)]
    return [site.name for site in own if trained and f"{site.name}.weight" not in trained]


def placed(asked: Any, modules: Sequence[str]) -> Any:
    """The tokens of a file under the paths of the embeddings whose rows it holds; a tied head has none of its own."""
    if isinstance(asked, Mapping):
        return {name: tokens for name, tokens in asked.items() if any(matches(module, name) for module in modules)}
    return {modules[0]: asked} if asked and len(modules) == 1 else asked or ()


def listed(asked: Tokens | Mapping[str, Tokens]) -> Any:
    """As PEFT writes them."""
    if isinstance(asked, Mapping):
        return {name: list(tokens) for name, tokens in asked.items()} or None
    return list(asked) or None


def least_rows(asked: Tokens | Mapping[str, Tokens]) -> int:
    """The fewest rows that an embedding with these tokens can have."""
    lists = asked.values() if isinstance(asked, Mapping) else [asked]
    return 1 + max((token for tokens in lists for token in tokens), default=0)


def input_embedding(sites: Sequence[Site]) -> str:
    """The module whose matrix the tokens look their rows up in; T5's encoder shares one that has a name of its own."""
    tokens = next((site for site in sites if site.kind == "tokens"), None)
    if tokens is None or not _is_tied(sites, tokens):
        return "embed_tokens" if tokens is None else tokens.name
    shared = [s for s in sites if s.kind == "parameter" and "embed" in s.roles and s.shape == tokens.shape]
    return shared[0].name.removesuffix(".weight") if shared else tokens.name


def tied_heads(sites: Sequence[Site]) -> list[str]:
    """Heads that have no matrix of their own."""
    return [s.name for s in sites if s.kind == "linear" and "head" in s.roles and _is_tied(sites, s)]


def _is_matrix_of(site: Site, name: str) -> bool:
    return len(site.shape) == 2 and site.leaf == "weight" and matches(site.owner, name)


def _tied_head(sites: Sequence[Site], name: str) -> bool:
    """Whether the name is a head's that has no matrix of its own."""
    heads = [site for site in sites if site.kind == "linear" and matches(site.name, name)]
    return bool(heads) and all(_is_tied(sites, site) for site in heads)


def _is_tied(sites: Sequence[Site], module: Site) -> bool:
    return not any(site.kind == "parameter" and site.name == f"{module.name}.weight" for site in sites)


def _token_problems(site: Site, tokens: Iterable[int]) -> list[str]:
    counted = list(tokens)
    beyond = [token for token in counted if not 0 <= token < site.shape[0]]
    twice = sorted({token for token in counted if counted.count(token) > 1})
    problems = [f"{token} is named twice" for token in twice]
    if beyond:
        told = f"{', '.join(map(str, beyond[:4]))}{' ...' if len(beyond) > 4 else ''}"
        problems.append(
            f"{site.name} has {site.shape[0]} rows and none for {told}; add the tokens to the "
            "base first: lorica.add_tokens(model, [...])"
        )
    return problems


def _lost(name: str, tied: bool, places: Sequence[Site], sites: Sequence[Site]) -> str:
    if tied:
        return f"{name!r} is tied with the embedding; give both the same tokens, or leave it out"
    if places:
        return f"{name!r} means {', '.join(site.name for site in places)}; write the whole path of one"
    known = {
        site.leaf for site in sites if site.kind == "embedding" or (site.kind == "linear" and "head" in site.roles)
    }
    return f"{name!r} matches no embedding{did_you_mean(name, known) or '; it has ' + ', '.join(sorted(known))}"
