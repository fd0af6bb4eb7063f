"""The contract of a method: from the sites of a base to the edits that adapt it.

    edits = method.edits(sites)          values; only shapes are needed
    module = edit.build(start)           the trainable module of one edit, made when it is attached

Five edits are closed, methods are open.  Each edit says where it goes; what its module must offer:

    Around(site)              forward(x, base, flow) -> y;  merged(W) -> W';  low_rank() -> LowRank | None;
                              merged_bias(b) -> b' where the bias changes;  inert() -> bool where factors cannot tell
    After(site)               forward(y, flow) -> y;  inert(), where it can tell that it changes nothing
    KeysValuesBefore(site)    forward() -> keys, values, each (P, heads_kv, d_head)
    TokensBefore(site)        forward() -> (P, d)
    Instead(site)             forward() -> the trainable copy that takes the parameter's place

Parameters are trained.  Persistent buffers are not, and are kept in the adapter file beside them: what an adapter needs
to compute again and nothing else holds (a frozen factor).  Other buffers are made anew by `build`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from lorica.errors import RecipeError
from lorica.kernels import FrozenConv, FrozenWeight, LowRank, Noise, low_rank_linear
from lorica.methods.statistic import Statistic
from lorica.methods.targets import Selection
from lorica.site import Place, Site


class Flow(Protocol):
    """What an edit may know of the pass its tokens belong to: the noise of dropout, None in evaluation."""

    @property
    def noise(self) -> Noise | None: ...


@dataclass(frozen=True, eq=False)
class Start:
    """What a module is built from: a generator of its own (seeded by the run's seed and the site's name, so that the
    order of sites changes nothing), the device and type of its parameters, the weight that it edits, if any, and what
    the statistics hold for its site, by the name of the parameter."""

    generator: torch.Generator
    device: torch.device
    dtype: torch.dtype
    weight: FrozenWeight | None = None
    parameter: Tensor | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)
    original: Callable[[str | None], Tensor] | None = None
    """The weight (d_out, d_in) as it was before it was quantised: from the checkpoint so named, or the base's own."""
    shared: dict[str, nn.Module] = field(default_factory=dict)
    """What the modules of one method have in common: the first that needs it makes it, and trains it as its own."""

    def once(self, key: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The shared module of this name: a module, because its tensors stay one when the model is moved."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(*shape, device=self.device, dtype=self.dtype))

    def zeros(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(*shape, device=self.device, dtype=self.dtype))

    def uniform(self, bound: float, *shape: int) -> nn.Parameter:
        """U(-bound, bound), drawn in float32 on the CPU whatever the device, so that a seed means the same anywhere."""
        return self._drawn(shape, lambda values: values.uniform_(-bound, bound, generator=self.generator))

    def normal(self, std: float, *shape: int) -> nn.Parameter:
        return self._drawn(shape, lambda values: values.normal_(0.0, std, generator=self.generator))

    def _drawn(self, shape: tuple[int, ...], draw: Callable[[Tensor], Tensor]) -> nn.Parameter:
        if self.device.type == "meta":
            return self.empty(*shape)
        return nn.Parameter(draw(torch.empty(*shape, dtype=torch.float32)).to(self.device, self.dtype))


Build = Callable[[Start], nn.Module]
Role = Literal["A", "B", "embedding", "table", "matrix", "vector"]
"""What a trained tensor is to an optimiser: a factor of a low-rank product, which is s B A; a factor of one around an
embedding; a matrix with a row a token or a class; any other matrix; a vector or a number."""


@dataclass(frozen=True, kw_only=True)
class Keeps:
    """Of each token, beside what the bare base needs to pass a gradient on: what goes into the site, what comes out of
    it, and so many numbers more.  A trained vector needs nothing new.  `fuses`: it is a low-rank product, which a gated
    MLP computes with those of its siblings where all three have one.  `like_weight`: W is read, not by products alone,
    and so many matrices of its size are made on the way."""

    inputs: bool = False
    outputs: bool = False
    numbers: int = 0
    fuses: bool = False
    like_weight: int | None = None


def stored(module: nn.Module) -> dict[str, Tensor]:
    """What the adapter file keeps of an edit's module, by name: trained parameters and persistent buffers."""
    kept = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in kept.items() if not _is_frozen_parameter(tensor)}


def _is_frozen_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of a base at one site.  `build` makes its module; on the meta device it is how a plan counts."""

    place: ClassVar[Place]
    site: Site
    build: Build


class Around(Edit):
    """Beside a linear, an embedding, a convolution or the weights of experts: the LoRA family."""

    place = "around"


class After(Edit):
    """On the output of a sublayer, before the residual: bottleneck adapters."""

    place = "after"


class KeysValuesBefore(Edit):
    """Learned keys and values that every token of a document sees: prefix tuning."""

    place = "keys_values_before"


class TokensBefore(Edit):
    """Learned vectors before the embeddings of a document: prompt tuning."""

    place = "tokens_before"


class Instead(Edit):
    """A trainable copy takes the place of a parameter, whose own object is kept: full, BitFit, modules_to_save."""

    place = "instead"


def neighbours(names: Iterable[str]) -> dict[str, list[str]]:
    """Each name with those under the same parent, itself among them, in their order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return {name: group for group in groups.values() for name in group}


class Copy(nn.Module):
    """The module of an Instead edit that starts as the parameter itself, in float32 or better."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        assert start.parameter is not None
        source = start.parameter.detach()
        self.value = nn.Parameter(source.to(start.device, start.dtype, copy=True))

    def forward(self) -> Tensor:
        return self.value


def product_of(base: nn.Module, x: Tensor) -> Tensor:
    """What a linear of the base computes of x (..., d_in), however its weight is stored.

    The module's own forward is not called: bitsandbytes' may pack its weight anew in place.
    """
    bias: Any = base.bias
    return FrozenWeight.of(base).linear(x, bias)


class AroundLinear(nn.Module):
    """What Around modules on linears share: the fast path follows from `low_rank`, and `merged` defines the method.

    A subclass has `low_rank()` and, where that says less than `merged` does, its own forward.
    """

    dropout: float = 0.0
    site: int = 0
    """What `dropped` reads: the probability, and the id under which the site draws its masks."""

    def low_rank(self) -> LowRank | None:
        raise NotImplementedError

    def on(self, weight: FrozenWeight, noise: Noise | None = None) -> LowRank | None:
        """`low_rank` on the layer of this weight, in a pass with or without noise; gains may depend on either."""
        return self.low_rank()

    def fusible(self, weight: FrozenWeight, noise: Noise | None = None) -> LowRank | None:
        """What a fused path may compute in place of `forward`: None where a subclass has a forward of its own."""
        return self.on(weight, noise) if type(self).forward is AroundLinear.forward else None

    def merged(self, W: Tensor) -> Tensor:
        """W (d_out, d_in) -> W', in W's own type; float32 or better is the caller's duty."""
        raise NotImplementedError

    def merged_bias(self, bias: Tensor) -> Tensor:
        """b (d_out,) -> b', which is b itself unless the method scales the whole output.  W is not read for it."""
        return bias

    def factors(self) -> LowRank | None:
        """The low-rank product that W' - W is, where it is one: s B A."""
        low_rank = self.low_rank()
        return low_rank if low_rank is not None and low_rank.plain else None

    def dropped(self, x: Tensor, flow: Flow) -> Tensor:
        """The input of an adapter's own path: x, with dropout in training."""
        if flow.noise is None or not self.dropout or not self.training:
            return x
        return x * flow.noise.keep(self.dropout, self.site, x)

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        noise, weight = flow.noise if self.training else None, FrozenWeight.of(base)
        low_rank = self.on(weight, noise)
        assert low_rank is not None
        return low_rank_linear(x, weight, base.bias, low_rank, noise)  # type: ignore[arg-type]


class AroundConv(nn.Module):
    """What Around modules on convolutions share: the base's own reading of x, with the weight that `merged` gives.

    A subclass whose update is cheaper than its weight has its own forward; one with dropout needs one.
    """

    def low_rank(self) -> None:
        """None: a LowRank is a product of matrices."""

    def merged(self, W: Tensor) -> Tensor:
        """W (d_out, channels_in / groups, *kernel) -> W', in W's own type; float32 or better is the caller's duty."""
        raise NotImplementedError

    def factors(self) -> LowRank | None:
        """The low-rank product that W' - W is, with all that is under the kernel as its input, where it is one."""
        return None

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        conv = FrozenConv.of(base)
        wide = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32))
        return conv.product(x, self.merged(wide).to(x.dtype), conv.bias)


class Life(Protocol):
    """A method with a life of its own (AdaLoRA).  The trainer makes exactly these calls."""

    def begin(self, total: int) -> None:
        """Before the first step of `total`: RecipeError where the method has no room in so few."""

    def extra_loss(self) -> Tensor | None:
        """Added once per optimiser step to the loss; None when there is none."""
        ...

    def after_step(self, step: int, total: int) -> None:
        """Between the optimiser's step `step` (from 1) of `total` and clearing the gradients."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Method(BaseModel):
    """A frozen config that is also the recipe's entry.  Its file holds its mathematics."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str]
    """The name in recipes and in the METHODS table."""
    peft_type: ClassVar[str | None] = None
    mergeable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    beyond_peft: ClassVar[tuple[str, ...]] = ()
    """Fields that PEFT's config has no word for; a folder's lorica.json says them, and that it is this method."""
    peft_tasks: ClassVar[frozenset[str] | None] = None
    """The tasks in which PEFT computes what is computed here; None where its task says nothing."""
    peft_names: ClassVar[Mapping[str, str]] = {}
    """Fields by the name that PEFT gives them, and what to write here instead."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_peft_names(cls, values: Any) -> Any:
        given = [name for name in cls.peft_names if isinstance(values, Mapping) and name in values]
        if given:
            raise ValueError("; ".join(f"{name} is PEFT's name: {cls.peft_names[name]}" for name in given))
        return values

    def resolved(self, sites: tuple[Site, ...]) -> "Method":
        """The method with everything written out that its config says relative to a base (ranks by depth).  TargetError
        where the base has no such thing."""
        return self

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        """The edits on a base with these sites.  TargetError names all that does not fit."""
        raise NotImplementedError

    def statistic(self, sites: tuple[Site, ...]) -> Statistic | None:
        """What has to see training data before this method can be attached; None for most."""
        return None

    def given(self, sites: tuple[Site, ...], statistics: Mapping[str, Tensor]) -> "Method":
        """The method as these statistics decide it: EVA's ranks are theirs."""
        return self

    def finished(self) -> "Method":
        """The method that a trained adapter's file is of, where that is not the one that trained it; the tensors are
        then `module.finished()` of its modules, by the name of the parameter."""
        return self

    def edits_of_file(self, sites: tuple[Site, ...]) -> tuple[Edit, ...]:
        """The edits on the sites that a file's tensors name, of which nothing but shapes is known."""
        return self.edits(sites)

    def role(self, edit: Edit, parameter: str, shape: tuple[int, ...]) -> Role:
        """What a tensor of an edit's module is to an optimiser; `parameter` is its name there.  Factors that are not
        called A and B are a method's own to name."""
        if len(shape) < 2:
            return "vector"
        if edit.place == "around":
            pair = {"A", "B"}.intersection(parameter.split("."))
            named: Role = "A" if "A" in pair else "B" if pair else "matrix"
            return "embedding" if edit.site.kind == "embedding" else named
        at_an_end = edit.place == "tokens_before" or {"embed", "head"}.intersection(edit.site.roles)
        return "table" if at_an_end else "matrix"

    def wasteful(self, edits: Iterable[Edit]) -> list[str]:
        """What is a mistake in a new adapter, though one that was trained so is read and computes what it should."""
        return []

    def selection(self, sites: tuple[Site, ...]) -> Selection | None:
        """How many sites each entry of `target_modules` chose, for the plan; None where there are no targets."""
        return None

    def keeps(self, edit: Edit) -> Keeps:
        """What the backward pass needs of each token because of an edit, for the forecast of memory."""
        matrix = edit.place == "instead" and len(edit.site.shape) > 1
        return Keeps(inputs=matrix or edit.place == "around")

    def note(self, edit: Edit) -> str:
        """A few characters for the plan's table, such as `r=8 s=2`."""
        return ""

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        """What the plan says beneath its table, a line each."""
        return ()

    def advice(self) -> str:
        """Where to start with the learning rate; empty when nothing is known."""
        return ""

    def life(self, modules: Mapping[str, nn.Module]) -> Life | None:
        """The running state of a method that has one; modules by site name."""
        return None

    def unfinished(self, state: Mapping[str, Mapping[str, Tensor]]) -> str | None:
        """Why an adapter is not yet what the method ends with; None where it is.  `state` holds the tensors of each
        site by name: they tell, whoever trained them."""
        return None

    def packed(self, tensors: Mapping[str, Tensor], edits: tuple[Edit, ...]) -> dict[str, Tensor]:
        """The tensors of `file_name` as PEFT's file holds them, where it has several of them in one."""
        return dict(tensors)

    def unpacked(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, Tensor]:
        """The inverse of `packed` on a base with these sites.  AdapterError where they are others."""
        return dict(tensors)

    def numbered_sites(self, config: Mapping[str, Any]) -> tuple[Site, ...]:
        """Sites with the shapes that a file of PEFT tells by number, where it names none."""
        return ()

    def file_name(self, edit: Edit, parameter: str, around: Mapping[str, Sequence[str]]) -> str:
        """The key of a trainable tensor in the adapter file, PEFT's where PEFT has the method.

        `around` holds the names of the sites that have a module around them, each with its neighbours: PEFT moves their
        base one level down.
        """
        return edit.site.name if edit.place == "instead" else f"{edit.site.name}.{parameter}"

    @classmethod
    def site_name(cls, key: str) -> str:
        """The site (or parameter) whose edit a key of an adapter file belongs to: the inverse of `file_name`."""
        return key

    @classmethod
    def parameter_name(cls, key: str) -> str:
        """The parameter of the base that a key names, taken by the letter, if it names one."""
        return key

    @classmethod
    def plain_keys(cls, keys: Collection[str]) -> Mapping[str, str]:
        """Each key of a file as `file_name` spells it, where other programs have spellings of their own."""
        return {key: key for key in keys}

    @classmethod
    def located(
        cls, keys: Collection[str], config: Mapping[str, Any], sites: tuple[Site, ...] = ()
    ) -> Mapping[str, str]:
        """Each key of a file as it would be if it named its site by the site's own name; `config` is its part of
        adapter_config.json, `sites` are those of the base where one is at hand."""
        return {key: key for key in keys}

    def peft_problems(self, edits: tuple[Edit, ...]) -> list[str]:
        """Edits that PEFT's format of this method cannot say, or says with another meaning, each with the reason."""
        return []

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        """The site that the tensors of `shapes` (file key to shape) sit on, as far as they tell without its base."""
        (shape,) = shapes.values()
        return Site(name=name, kind="parameter", shape=shape)

    @classmethod
    def surplus(cls, key: str) -> bool:
        """Whether a key of an adapter file is a frozen tensor of the base, which PEFT writes beside some adapters."""
        return False

    def repeated(self, tensors: Mapping[str, Tensor], sites: tuple[Site, ...]) -> dict[str, Tensor]:
        """Tensors that the adapter file holds once more under another key, because PEFT looks for them there too."""
        return {}

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any] | None:
        """The method's entries of adapter_config.json as PEFT writes them; None when PEFT lacks the method."""
        return None

    @classmethod
    def is_meant(cls, config: Mapping[str, Any]) -> bool:
        """Whether these fields of a PEFT config describe this method and no other of the same `peft_type`."""
        return False

    @classmethod
    def from_peft(cls, config: Any, sites: tuple[Site, ...] = ()) -> "Method":
        """The method that a config of PEFT (the object, or its fields) describes on a base with these sites;
        RecipeError names what has no counterpart."""
        raise RecipeError(f"{cls.kind}: PEFT has no such method")

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> "Method":
        """The method of an adapter folder: `config` is its part of adapter_config.json, `keys` name its tensors.  No
        pattern of the config is executed.  RecipeError where it is not understood."""
        return cls.model_validate(config)
