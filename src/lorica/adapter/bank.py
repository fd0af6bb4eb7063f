"""Bank: many adapters on one base, chosen for each batch, or for each row of it.

    y[row] = W x[row] + sum over the adapters chosen for that row of   weight * delta_adapter(x[row])

The choice is made where the model is entered (`with bank.use(...)`) and travels with the tokens as a route: -1 is the
base, any other number a mix that the bank knows.  The batched forward is differentiable; in a pass of an engine, which
keeps its documents apart, each row is computed as it would be alone, to the bit.

Adapters may be added and removed by one thread while another runs the model with those that stay.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lorica.adapter.attach import frozen, occupy
from lorica.adapter.attached import Attached
from lorica.adapter.file import AdapterFile, read
from lorica.adapter.installed import Modules, Undo, undone
from lorica.adapter.load import filled, plan_on, require_base, require_tokens
from lorica.adapter.mixes import Choice, Mixes, mix_of
from lorica.adapter.plan import Plan
from lorica.adapter.resized import settled
from lorica.errors import AdapterError, did_you_mean
from lorica.kernels import Factors, LowRank, Noise, Terms, in_slabs
from lorica.models import ambient, enter, install, weight_of
from lorica.models.quantised import unpacked
from lorica.site import Site

TOKENS_FIRST = frozenset({"bros", "fsmt", "led", "longformer", "wavlm", "xlnet"})
"""Families with linears that see (tokens, rows, d), which a batch of as many tokens as rows does not show."""
KEPT = 8
"""Compositions of a pass of which a site keeps its terms: the documents being decoded, and chunks of others."""


class RoutedFlow(Protocol):
    """What a site of the bank reads of the pass: noise of dropout, and the choice of each row or token."""

    @property
    def noise(self) -> Noise | None: ...

    @property
    def route(self) -> Tensor | None: ...

    @property
    def apart(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Held:
    """One adapter of a bank: its module at each site, and the factors that rows read in its place, where it has any."""

    plan: Plan
    modules: Mapping[str, nn.Module]
    factors: Mapping[str, Factors | None]

    @cached_property
    def bytes(self) -> int:
        tensors = (one for module in self.modules.values() for one in module.state_dict(keep_vars=True).values())
        own = {id(one): one.nbytes for one in tensors}
        return sum(own.values()) + sum(factors.bytes for factors in self.factors.values() if factors)


class Bank:
    """Adapters by name on one base, which none of them changes.

    bank.add("sql", "out/");  bank.add("json", "out2/")
    with bank.use("sql"): ...                         one for the batch
    with bank.use(["sql", "json", None]): ...         one per row, None is the base
    with bank.use({"sql": 0.7, "json": 0.3}): ...     the weighted sum of their deltas
    """

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        self.model = model
        self.adapters: dict[str, Held] = {}
        self.mixes = Mixes()
        self._lock = threading.RLock()
        self._sites: dict[str, BankSite] = {}
        self._undos: list[Undo] = [occupy(model)]
        self._undos += [enter(model, ambient.Clock(seed)), frozen(model), unpacked(model)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.adapters)

    def __contains__(self, name: str) -> bool:
        return name in self.adapters

    def add(
        self,
        name: str,
        adapter: "str | Path | AdapterFile | Attached | Held",
        *,
        trainable: bool = False,
        untrained: bool = False,
        other_base: bool = False,
    ) -> None:
        """Adds the adapter of a folder, a hub id, a copy of one attached to another model of this base, or what
        `prepared` made of one.

        AdapterError as `load` gives it, and when the name is taken, or the adapter changes more than rows can choose
        (biases and modules saved whole).  The others are not disturbed.
        """
        self._require_free(name)
        accepted = {"trainable": trainable, "untrained": untrained, "other_base": other_base}
        held = adapter if isinstance(adapter, Held) else self.prepared(adapter, name=name, **accepted)
        with self._lock:
            self._require_free(name)
            for site in [self._site(p.site) for p in held.plan.edits]:
                site.put(name, held.modules[site.name], held.factors.get(site.name))
            self.adapters[name] = held

    def prepared(
        self,
        adapter: str | Path | AdapterFile | Attached,
        *,
        name: str = "adapter",
        trainable: bool = False,
        untrained: bool = False,
        other_base: bool = False,
    ) -> "Held":
        """All of `add` that takes time, with its errors: read, checked, fitted to this base and laid out for rows."""
        file = adapter.file() if isinstance(adapter, Attached) else adapter
        file = file if isinstance(file, AdapterFile) else read(file)
        require_tokens(file, self.model)
        if not other_base:
            require_base(file, self.model)
        file = settled(self.model, file)
        planned = plan_on(self.model, file)
        return self.laid_out(name, planned, filled(self.model, planned, file, untrained=untrained), trainable)

    def laid_out(self, name: str, planned: Plan, modules: Modules, trainable: bool = False) -> "Held":
        """Of modules that were fitted to this base, or to another model of the same tensors, and stand nowhere now."""
        _require_batchable(name, planned)
        held = {p.site.name: modules[p.key].requires_grad_(trainable) for p in planned.edits}
        factors = {} if trainable else {p.site.name: self._factors(p.site, held[p.site.name]) for p in planned.edits}
        return Held(planned, held, factors)

    def remove(self, name: str) -> "Held":
        """Returns what `add` takes to have it again."""
        with self._lock:
            self._require(name)
            held = self.adapters.pop(name)
            self.mixes.forget(name)
            for site in self._sites.values():
                site.drop(name)
        return held

    def bytes(self, name: str) -> int:
        """What an adapter holds in memory."""
        self._require(name)
        return self.adapters[name].bytes

    def named_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """What of one adapter is trained, by its key in its file."""
        self._require(name)
        held = self.adapters[name]
        for planned in held.plan.edits:
            for key, tensor in planned.tensors.items():
                if tensor.trained:
                    yield key, held.modules[planned.site.name].get_parameter(tensor.name)

    @contextmanager
    def use(self, choice: Choice | Sequence[Choice]) -> Iterator[nn.Module]:
        """Inside the block the model answers with these adapters: one choice for every row, or a list with one a row.

        AdapterError for a name that the bank does not hold, and where the model does not keep its rows apart.
        """
        rows = [choice] if choice is None or isinstance(choice, str | Mapping) else list(choice)
        family = getattr(getattr(self.model, "config", None), "model_type", None)
        if family in TOKENS_FIRST and any(row != rows[0] for row in rows):
            raise AdapterError(f"bank: {family} counts tokens before rows inside; choose one adapter for all rows")
        route = torch.tensor([self.number(row) for row in rows], device=next(self.model.parameters()).device)
        with ambient.entered(replace(ambient.current.get(), route=route)):
            yield self.model

    def detach(self) -> nn.Module:
        """Takes every adapter off and returns the base, as it was."""
        undone(self._undos)
        self._undos, self.adapters, self._sites = [], {}, {}
        return self.model

    def number(self, choice: Choice) -> int:
        """What stands for a choice in a route.  AdapterError for a name that the bank does not hold."""
        mix = mix_of(choice)
        for name, _ in mix:
            self._require(name)
        return self.mixes.number(mix)

    def _factors(self, site: Site, module: nn.Module) -> Factors | None:
        """None where the module is no low-rank product on a linear."""
        if not hasattr(module, "fusible"):
            return None
        weight = weight_of(self.model, site)
        with torch.no_grad():
            low_rank = module.fusible(weight)  # type: ignore[operator]
            return None if low_rank is None else Factors.of(low_rank, weight.dtype)

    def _require_free(self, name: str) -> None:
        if name in self.adapters:
            raise AdapterError(f"bank: {name!r} is taken; remove it first, or choose another name")

    def _require(self, name: str) -> None:
        if name not in self.adapters:
            held = did_you_mean(name, self.adapters) or f"; it holds {', '.join(self.adapters) or 'none'}"
            raise AdapterError(f"bank: no adapter {name!r}{held}")

    def _site(self, site: Site) -> "BankSite":
        if site.name not in self._sites:
            module = BankSite(site.name, self.mixes)
            self._undos.append(install(self.model, "around", site, module))
            self._sites[site.name] = module
        return self._sites[site.name]


@dataclass(frozen=True, eq=False)
class Composed:
    """What the rows of a pass, chosen as `rows` says, take at one site: products, and (module, weight, whether it is
    all that its rows take, rows) of every other adapter."""

    rows: tuple[int, ...]
    terms: Terms | None
    others: Sequence[tuple[nn.Module, float, bool, Tensor]]


class BankSite(nn.Module):
    """The module around one linear or embedding: every adapter of the bank that has an edit there."""

    def __init__(self, name: str, mixes: Mixes) -> None:
        super().__init__()
        self.name, self.mixes = name, mixes
        self.places: dict[str, str] = {}
        self.adapters = nn.ModuleDict()
        """By a number, because the names that people choose may hold dots; `places` maps name to number.  Another dict
        each time, since other threads may be walking through the modules of the model."""
        self.factors: dict[str, Factors | None] = {}
        self._composed: dict[tuple[int, ...], Composed] = {}
        self._last: Composed | None = None

    def put(self, name: str, module: nn.Module, factors: Factors | None = None) -> None:
        """factors: None where rows are to read the module itself."""
        number = str(1 + max(map(int, self.adapters), default=0))
        self.factors[name] = factors
        self.adapters = nn.ModuleDict({**self.adapters, number: module})
        self.places[name] = number

    def drop(self, name: str) -> None:
        if name in self.places:
            self._composed, self._last = {}, None
            number = self.places.pop(name)
            self.adapters = nn.ModuleDict({key: one for key, one in self.adapters.items() if key != number})
            del self.factors[name]

    def low_rank(self) -> None:
        """None: rows may differ, so siblings are not fused here."""

    def merged(self, W: Tensor) -> Tensor:
        """Where a weight is read without calling a module for it, one choice has to serve all rows of a batch."""
        route = ambient.current.get().route
        numbers = [] if route is None else route.unique().tolist()
        if len(numbers) > 1:
            raise AdapterError(f"bank: rows of one batch share the weight of {self.name}; choose one adapter for all")
        held = self.mixes.of(numbers[0]) if numbers else ()
        chosen = [(self.adapters[self.places[name]], weight) for name, weight in held if name in self.places]
        changes = [weight * (module.merged(W) - W) for module, weight in chosen]  # type: ignore[operator]
        return W + sum(changes[1:], changes[0]) if changes else W

    def terms(self, flow: RoutedFlow, base: nn.Module) -> Terms | None:
        """The low-rank products that rows of this pass take here."""
        return self._composition(flow).terms

    def only_terms(self, flow: RoutedFlow) -> bool:
        """Whether `terms` are all that rows of this pass take here."""
        return not self._composition(flow).others

    def others(self, y: Tensor, x: Tensor, base: nn.Module, flow: RoutedFlow) -> Tensor:
        """y with what its rows take here that is no low-rank product on a linear."""
        for module, weight, alone, rows in self._composition(flow).others:
            if alone:
                y[rows] = in_slabs(lambda slab, own=module: own(slab, base, flow), x[rows]).to(y.dtype)
            else:
                delta = in_slabs(lambda slab, own=module: own(slab, base, flow) - base(slab), x[rows])
                y.index_add_(0, rows, delta.to(y.dtype), alpha=weight)
        return y

    def _composition(self, flow: RoutedFlow) -> "Composed":
        rows = self.mixes.rows(flow.route)
        last = self._last
        if last is not None and last.rows is rows:
            return last
        found = self._composed.get(rows)
        if found is None:
            found = self._compose(rows)
            self._composed = {**dict(list(self._composed.items())[1 - KEPT :]), rows: found}
        self._last = found = replace(found, rows=rows)
        return found

    def _compose(self, rows: tuple[int, ...]) -> "Composed":
        taken = [
            (row, name, weight, len(mix) == 1 and weight == 1.0)
            for row, mix in enumerate(map(self.mixes.of, rows))
            for name, weight in mix
            if name in self.places
        ]
        products = [(row, self.factors[name], weight) for row, name, weight, _ in taken if self.factors[name]]
        others: dict[tuple[int, str, float, bool], list[int]] = {}
        turns: Counter[int] = Counter()
        for row, name, weight, alone in taken:
            if not self.factors[name]:
                others.setdefault((turns[row], name, weight, alone), []).append(row)
                turns[row] += 1
        return Composed(
            rows,
            Terms(*zip(*products, strict=True)) if products else None,  # type: ignore[arg-type]
            [
                (self.adapters[self.places[name]], weight, alone, torch.tensor(chosen))
                for (_, name, weight, alone), chosen in sorted(others.items(), key=lambda item: item[0][0])
            ],
        )

    def forward(self, x: Tensor, base: nn.Module, flow: RoutedFlow) -> Tensor:
        y = base(x)
        if flow.route is None:
            return y
        if flow.apart and isinstance(base, nn.Embedding):
            return self.others(y, x, base, flow)
        route = _per_row(flow.route, x, self.name)
        for number in route.unique().tolist():
            for name, weight in self.mixes.of(number):
                if name in self.places:
                    module = self.adapters[self.places[name]]
                    y = _added(y, x, (route == number).nonzero().squeeze(-1), weight, module, base, flow)
        return y


def _per_row(route: Tensor, x: Tensor, site: str) -> Tensor:
    """The route of each row of x.  One choice serves any number of rows; what is one row's (tokens, windows) lies side
    by side, except where a router sends tokens to experts, or tokens are counted first."""
    rows = x.shape[0]
    if rows == len(route):
        return route
    if len(route.unique()) == 1:
        return route[:1].expand(rows)
    tokens_first = x.dim() > 2 and x.shape[1] == len(route)
    if rows % len(route) or tokens_first or "experts" in site.split("."):
        raise AdapterError(
            f"bank: {site} gets {tuple(x.shape)} for {len(route)} choices, which does not tell whose row is whose; "
            "choose one adapter for all rows"
        )
    return route.repeat_interleave(rows // len(route))


def _added(
    y: Tensor, x: Tensor, rows: Tensor, weight: float, module: nn.Module, base: nn.Module, flow: RoutedFlow
) -> Tensor:
    """y with `weight` times the adapter's delta on these rows."""
    low_rank: LowRank | None = module.low_rank() if hasattr(module, "low_rank") else None  # type: ignore[operator]
    if low_rank is None or low_rank.base is not None or low_rank.dropped_base is not None:
        delta = (module(x, base, flow) - base(x))[rows]
    else:
        # masks are drawn before rows are taken: an element is dropped by its place in the whole batch
        delta = low_rank.delta(low_rank.drop(x, flow.noise if module.training else None)[rows])
    return y.index_add(0, rows, delta.to(y.dtype), alpha=weight)


def _require_batchable(name: str, planned: Plan) -> None:
    others = sorted({p.edit.place for p in planned.edits if p.edit.place != "around"})
    if others:
        what = "trained biases or modules saved whole" if others == ["instead"] else ", ".join(others)
        raise AdapterError(f"bank: {name!r} holds {what}, which rows of one batch cannot choose; load it by itself")
