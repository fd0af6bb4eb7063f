"""Sites: what of any nn.Module can be edited, found by walking it.  Nothing but shapes is read.

What a module is called in its family gives its roles (`families.py`); its shape comes from the module itself, so an
unknown model still has all its linears, embeddings and parameters as sites, without roles.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lorica.kernels import FrozenWeight
from lorica.kernels.fetched import Fetched
from lorica.kernels.quantised import EightBit, FourBit, bytes_of, held_by
from lorica.models.decoder import SelfAttention
from lorica.models.edited import Beside, Edited, original
from lorica.models.families import (
    HEADS,
    HEADS_OF_KEYS,
    HEADS_OF_QUERIES,
    POSITIONS_OF_PADDING,
    UNLIMITED,
    is_cross,
    is_expert,
    roles_of,
    tower_of,
)
from lorica.models.frozen_linear import FrozenLinear
from lorica.site import Kind, Site


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Every site of a base in the order of its modules, then every parameter once.

    The same whether adapters are attached or not.
    """
    walk = _Walk.of(model)
    found = [site for name, module in walk.modules.items() for site in walk.at(name, module)]
    every = (*found, *walk.attentions(found), *walk.parameters())
    if not hasattr(walk.config, "vision_config"):
        return every
    return tuple(replace(site, tower=tower_of(site.name)) for site in every)


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules()` of the base alone: an edited module counts as the one it edits, under that one's name."""
    yield from _descend(model, "", set())


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The base's parameters and persistent buffers by name, tied ones once under the first name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in base_modules(model):
        for leaf, tensor in own_tensors(module).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{name}.{leaf}" if name else leaf] = tensor
    return found


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every name of a parameter that has several, to its other names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(n for n in group if n != name) for group in names.values() for name in group if len(group) > 1}


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters, originals where a trainable copy stands in their place."""
    return {leaf: value for leaf in module._parameters if (value := original(module, leaf)) is not None}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    left_out = module._non_persistent_buffers_set
    buffers = {leaf: value for leaf, value in module._buffers.items() if value is not None and leaf not in left_out}
    return {**own_parameters(module), **buffers}


def context_limit(model: nn.Module) -> int | None:
    """The longest document the base can read, in tokens; None where positions have no end (T5, BLOOM)."""
    config = text_config(getattr(model, "config", None))
    if config is None:
        return None
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(longest, int) or longest <= 0 or config.model_type in UNLIMITED:
        return None
    padding = getattr(config, "pad_token_id", None)
    return longest - padding - 1 if config.model_type in POSITIONS_OF_PADDING and padding is not None else longest


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model, where there are several."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _descend(module: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    while isinstance(module, Edited):
        module = module.base
    if id(module) in seen or isinstance(module, Beside):
        return
    seen.add(id(module))
    yield name, module
    children = {leaf: child for leaf, child in module.named_children() if not isinstance(child, Beside)}
    for leaf, child in children.items():
        yield from _descend(child, f"{name}.{leaf}" if name else leaf, seen)


@dataclass(frozen=True, eq=False)
class _Walk:
    modules: dict[str, nn.Module]
    family: str
    config: Any
    head: nn.Module | None
    tokens: nn.Module | None

    @classmethod
    def of(cls, model: nn.Module) -> "_Walk":
        config = getattr(model, "config", None)
        family = getattr(config, "model_type", "")
        return cls(dict(base_modules(model)), family, config, _output(model), _input(model))

    def roles(self, name: str, module: nn.Module) -> tuple[str, ...]:
        if module is self.head or any(part in HEADS for part in name.split(".")):
            return ("head",)
        if module is self.tokens:
            return ("embed",)
        return roles_of(name, self.family) or (("norm",) if "Norm" in type(module).__name__ else ())

    def at(self, name: str, module: nn.Module) -> Iterator[Site]:
        """The sites that one module is."""
        if is_linear(module):
            owner = name.rpartition(".")[0]
            read = owner if isinstance(self.modules.get(owner), nn.MultiheadAttention) else ""
            site = replace(_linear(name, module, self.roles(name, module)), part_of=read)
            yield site
            yield from _sublayer(site)
        elif is_conv(module):
            yield _conv(name, module, self.roles(name, module))
        elif isinstance(module, nn.MultiheadAttention) and name:
            yield from _projections(name, module)
        elif isinstance(module, nn.Embedding):
            site = _embedding(name, module, self.roles(name, module))
            if is_lookup(module):
                yield site
            if module is self.tokens:
                yield replace(site, kind="tokens")
        elif holds_experts(name, module):
            yield from _experts(name, module, self.family)

    def attentions(self, found: list[Site]) -> Iterator[Site]:
        """Every module that makes keys, once."""
        keys = [site for site in found if site.kind == "linear" and "k" in site.roles and not site.bare]
        makers: dict[str, Site] = {}
        for site in keys:
            makers.setdefault(site.name.rpartition(".")[0], site)
        for name, site in makers.items():
            shape = self._attention_shape(name, site)
            if shape is not None:
                role = "cross_attention" if is_cross(name) else "attention"
                attention = replace(site, name=name, kind="attention", roles=(role,), shape=shape, bias=False)
                yield replace(attention, transposed=False, window=self._window(name, site.layer))

    def _window(self, name: str, layer: int | None) -> int | None:
        """Our decoder's attention has its own; transformers' says it in its config, by kinds of layers or for all."""
        module: Any = self.modules[name]
        if isinstance(module, SelfAttention):
            return module.window
        config = getattr(module, "config", None)
        kinds = getattr(config, "layer_types", None) or ()
        full = layer is not None and layer < len(kinds) and kinds[layer] != "sliding_attention"
        return None if full else getattr(config, "sliding_window", None)

    def _attention_shape(self, name: str, site: Site) -> tuple[int, int] | None:
        """(heads_kv, d_head) from the number of heads and the width of what makes the keys."""
        queries = self._number(name, HEADS_OF_QUERIES)
        if queries is None:
            return None
        keys = 1 if _shares_keys(self.config) else self._number(name, HEADS_OF_KEYS) or queries
        heads = sum({"q": queries, "k": keys, "v": keys}[role] for role in site.roles)
        return keys, site.d_out // heads

    def _number(self, name: str, attributes: tuple[str, ...]) -> int | None:
        """The first such number that the module and its config state, which is the model's where it has none: a vision
        tower must not be told the language model's."""
        module = self.modules[name]
        own = getattr(module, "config", None)
        for owner in (module, text_config(self.config) if own is None else own):
            for attribute in attributes:
                value = getattr(owner, attribute, None)
                if isinstance(value, int):
                    return value
        return None

    def parameters(self) -> Iterator[Site]:
        seen: set[int] = set()
        for name, module in self.modules.items():
            roles, held = self.roles(name, module), _held_weight(module)
            if held is not None:
                yield _held(_site(f"{name}.weight", "parameter", roles, held.shape, held), held)
            for leaf, value in own_parameters(module).items():
                if id(value) not in seen and not (held is not None and leaf == "weight"):
                    seen.add(id(value))
                    path = f"{name}.{leaf}" if name else leaf
                    yield _site(
                        path, "parameter", roles + (("bias",) if leaf == "bias" else ()), tuple(value.shape), value
                    )


def _shares_keys(config: Any) -> bool:
    """Falcon and StarCoder: one head of keys for all, which no number in the config says."""
    return bool(getattr(config, "multi_query", False)) and not getattr(config, "new_decoder_architecture", False)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """transformers' Conv1D, a linear that stores (d_in, d_out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_conv(module: nn.Module) -> bool:
    """A convolution that reads its own weight as nn.Conv1d, nn.Conv2d or nn.Conv3d does: some subclasses standardise
    it, or hold it as the product of others."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    plain = any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)
    return plain and "weight" in own_parameters(module)


def holds_experts(name: str, module: nn.Module) -> bool:
    """Whether the parameters of three dimensions that the module itself holds are weights of experts."""
    known = is_expert(name) or type(module).__name__.endswith("Experts") or hasattr(module, "num_experts")
    return known and bool(name)


def is_lookup(module: nn.Embedding) -> bool:
    """Whether the module gives rows of its weight, or multiples of them (`embed_scale`), for the indices it is called
    with.  Tables of positions often compute those themselves, from a mask or an offset."""
    return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")


def _linear(name: str, module: Any, roles: tuple[str, ...]) -> Site:
    transposed = is_transposed(module)
    shape = (module.nf, module.nx) if transposed else (module.out_features, module.in_features)
    own, held = own_parameters(module), _held_weight(module)
    if held is not None:
        return replace(_held(_site(name, "linear", roles, shape, held), held), bias="bias" in own)
    return replace(_site(name, "linear", roles, shape, own["weight"]), bias="bias" in own, transposed=transposed)


def _held_weight(module: nn.Module) -> FrozenWeight | None:
    """Of a linear whose weight is no parameter."""
    if isinstance(module, FrozenLinear):
        return module.frozen_weight()
    return held_by(module) if isinstance(module, nn.Linear) else None


def _held(site: Site, weight: FrozenWeight) -> Site:
    """Where its numbers lie is none of the site's."""
    form = weight.form if isinstance(weight, Fetched) else weight
    return replace(site, stored=form.form, held_bytes=bytes_of(form)) if isinstance(form, FourBit | EightBit) else site


def _conv(name: str, module: Any, roles: tuple[str, ...]) -> Site:
    own = own_parameters(module)
    site = _site(name, "conv", roles, tuple(own["weight"].shape), own["weight"])
    return replace(site, bias="bias" in own, groups=module.groups)


IN_PROJECTIONS: dict[str, tuple[str, ...]] = {
    "in_proj_weight": ("q", "k", "v"),
    "q_proj_weight": ("q",),
    "k_proj_weight": ("k",),
    "v_proj_weight": ("v",),
}
"""What nn.MultiheadAttention holds as parameters: one matrix, or three where keys or values have their own width."""


def _projections(name: str, module: nn.MultiheadAttention) -> Iterator[Site]:
    own = own_parameters(module)
    for leaf, roles in IN_PROJECTIONS.items():
        if leaf in own:
            site = _site(f"{name}.{leaf}", "linear", roles, tuple(own[leaf].shape), own[leaf])
            yield replace(site, bias="in_proj_bias" in own, part_of=name, bare=True)


def _experts(name: str, module: nn.Module, family: str) -> Iterator[Site]:
    """Which of the two widths comes in is as the module says (`is_transposed`), as PEFT reads it too."""
    transposed = bool(getattr(module, "is_transposed", False))
    for leaf, value in own_parameters(module).items():
        if value.dim() == 3 and value.is_floating_point():
            shape = tuple(value.mT.shape if transposed else value.shape)
            site = _site(f"{name}.{leaf}", "experts", roles_of(f"{name}.{leaf}", family), shape, value)
            yield replace(site, transposed=transposed, part_of=name, bare=True)


def _embedding(name: str, module: nn.Embedding, roles: tuple[str, ...]) -> Site:
    return _site(
        name, "embedding", roles, (module.num_embeddings, module.embedding_dim), own_parameters(module)["weight"]
    )


def _sublayer(site: Site) -> Iterator[Site]:
    """The last linear of attention and of the MLP: its output is what the residual stream receives."""
    if is_expert(site.name):
        return
    if "o" in site.roles:
        role = "cross_attention" if is_cross(site.name) else "attention"
    elif {"down", "fc2"}.intersection(site.roles):
        role = "mlp"
    else:
        return
    yield replace(site, kind="sublayer", roles=(role,), shape=(site.d_out,), transposed=False)


def _site(name: str, kind: Kind, roles: tuple[str, ...], shape: tuple[int, ...], tensor: Tensor | FrozenWeight) -> Site:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Site(name=name, kind=kind, roles=roles, shape=shape, layer=_layer(name), dtype=dtype)


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _output(model: Any) -> nn.Module | None:
    """The output embeddings, where the model says which they are."""
    return _asked(model, "get_output_embeddings")


def _input(model: Any) -> nn.Module | None:
    """The embedding that is called on token ids; an encoder-decoder's encoder has its own, tied to the shared one."""
    encoder = model.get_encoder() if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else model
    return _asked(encoder, "get_input_embeddings")


def _asked(model: Any, method: str) -> nn.Module | None:
    try:
        found = getattr(model, method)()
    except (AttributeError, NotImplementedError):
        return None
    while isinstance(found, Edited):
        found = found.base
    return found if isinstance(found, nn.Module) else None
