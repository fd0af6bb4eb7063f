"""Bases: from a source to a frozen model in evaluation mode, or to its shapes alone.

source -> folder -> config -> CausalLM   the decoder family, tensors assigned straight from the memory map
                           -> transformers' own class for every other architecture
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.errors import ModelError, did_you_mean
from lorica.kernels.bitsandbytes import library
from lorica.models import foreign_attention, tiled_linear
from lorica.models.causal_lm import CausalLM
from lorica.models.config import FAMILIES
from lorica.models.fetched import Away, linears_of, refuse_foreign
from lorica.models.fingerprint import fingerprint_of_folder, whole_digest
from lorica.models.folder import folder_of
from lorica.models.foreign import (
    load_foreign,
    model_class,
    read_config,
    read_generation_config,
    read_tokenizer,
    stated_quantisation,
)
from lorica.models.freed import give_back
from lorica.models.heads import Head, head_class, head_modules, with_answers
from lorica.models.prequantised import Packed, packed_weights
from lorica.models.quantised import Quantisation, adopt, forget_stated, put, quantisable, quantise
from lorica.models.quiet import quiet
from lorica.models.stored import DTYPES, Stored

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WHOLE_AT_MOST = 256_000_000
"""Bytes of a checkpoint that are all hashed when it is first loaded: a quarter of a second."""
ROPE_KINDS = ("default", "linear", "llama3", "yarn")
NAMES_OF_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def load_base(
    source: str | Path,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    device: str | torch.device | None = None,
    head: Head | None = None,
    double_quant: bool = False,
    host_layers: int = 0,
) -> nn.Module:
    """A frozen base in evaluation mode, with `.tokenizer` (None without one), `.source` and `.base_fingerprint`.

    `.base_digest` is of every byte of its tensors; None for a large base where nobody asked for it yet.
    `.quantised_here` is how its linears were stored anew as they were read; None where they are as in the checkpoint.

    source         "embedded", a folder, a hub id, or "package:NAME", an installed package that carries a checkpoint
    dtype          "bfloat16", torch.float32 ...; None: the one the checkpoint states
    quantize       "nf4", "fp4" or "int8": how the linears are stored; a checkpoint that is quantised is loaded as it is
    device         None: the first CUDA device where there is one, else the CPU
    head           of a task, on transformers' model of the base; the model then has `.head` and `.head_modules`
    double_quant   the scales of nf4 are quantised too
    host_layers    blocks of the decoder family whose linears are fetched as they are used

    ModelError, one line a problem, when the base is missing, incomplete, damaged, or needs code of its own.
    """
    asked, place, form = parse_dtype(dtype), parse_device(device), Quantisation.of(quantize, double_quant)
    folder = folder_of(source)
    config = read_config(folder)
    stored = Stored(folder)
    kind = asked or _stated_dtype(config) or stored.dtype
    refuse_stored_types(stored)
    if form is not None:
        _refuse_requantising(folder, config)
    ours = head is None and is_decoder(config)
    if ours:
        model: nn.Module = _decoder(config, stored, kind, place, form, host_layers)
    else:
        if host_layers:
            refuse_foreign(folder)
        packed = stated_quantisation(config) is not None
        if packed:
            library()
        model = load_foreign(folder, config, kind, head, form)
        if packed:
            adopt(model, kind)
        if form is not None:
            quantise(model, form)
    model = model.to(place)
    if not ours:
        foreign_attention.use(model)
        tiled_linear.use(model)
    return _finished(model, source, folder, form)


def shapes_only(
    source: str | Path,
    dtype: str | torch.dtype | None = None,
    head: Head | None = None,
    quantize: str | None = None,
    double_quant: bool = False,
) -> nn.Module:
    """The same model on the meta device: any size at once, and nothing but config.json is read or fetched."""
    asked, form = parse_dtype(dtype), Quantisation.of(quantize, double_quant)
    folder = folder_of(source, weights=False, words=False)
    config = read_config(folder)
    if form is not None:
        _refuse_requantising(folder, config)
    form = form or stated_quantisation(config)
    kind: Any = CausalLM if is_decoder(config) else model_class(folder, config)
    if head is not None:
        kind, config = head_class(folder, config, head), with_answers(config, head)
    with torch.device("meta"), quiet():
        model: Any = kind(config)
    model.to(asked or _stated_dtype(config) or torch.float32).eval().requires_grad_(False)
    model.tokenizer, model.source = None, str(source)
    if head is not None:
        model.head, model.head_modules = head, head_modules(model)
    if form is not None:
        quantise(model, form)
    return model


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a base whose weights are not read or fetched; None where it has none."""
    return read_tokenizer(folder_of(source, weights=False))


def is_decoder(config: Any) -> bool:
    """Whether our own decoder computes exactly this base."""
    architecture = (getattr(config, "architectures", None) or ["ForCausalLM"])[0]
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILIES
        and architecture.endswith("ForCausalLM")
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in ROPE_KINDS
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in NAMES_OF_DTYPES.values()):
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in NAMES_OF_DTYPES:
        near = did_you_mean(name, NAMES_OF_DTYPES) or f"; it takes {', '.join(NAMES_OF_DTYPES)}"
        raise ModelError(f"dtype: {name!r} is no type that a base can be loaded in{near}")
    return NAMES_OF_DTYPES[name]


def parse_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = known_device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device: {device!r} was asked for, and torch sees no CUDA device here")
    return place


def known_device(device: str | torch.device) -> torch.device:
    """One that torch has a name for, whether it is here or not."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device: {device!r} is no device; it takes cpu, cuda or cuda:1") from error


def refuse_stored_types(stored: Stored) -> None:
    foreign = sorted({entry.dtype for entry in stored.entries.values()} - DTYPES.keys())
    if foreign:
        raise ModelError(f"{stored.folder}: tensors stored as {', '.join(foreign)}; give the full-precision base")


def _stated_dtype(config: Any) -> torch.dtype | None:
    stated = getattr(config, "dtype", None)
    return NAMES_OF_DTYPES.get(str(stated).removeprefix("torch."))


def _refuse_requantising(folder: Path, config: Any) -> None:
    found = stated_quantisation(config)
    if found is not None:
        raise ModelError(f"quantize: {folder} is stored as {found} already; leave quantize out to load it as it is")


def _decoder(
    config: Any, stored: Stored, dtype: torch.dtype, device: torch.device, form: Quantisation | None, host_layers: int
) -> CausalLM:
    """Tensor by tensor, so that beside what the model keeps there is one at a time."""
    with torch.device("meta"):
        model = CausalLM(config)
    packed = packed_weights(stored)
    forget_stated(config)
    source_of = _matched(model, stored, packed)
    small = set() if form is None else {f"{name}.weight" for name in quantisable(model)}
    away = Away(linears_of(model.model.layers, "model.layers", host_layers), device, dtype)
    for name, target in source_of.items():
        owner, place = target.removesuffix(".weight"), away.put if target in away.names else put
        if name in packed:
            parts = {part: stored.entries[part].tensor().to(device) for part in packed[name].parts}
            place(model, owner, packed[name].weight(parts, dtype))
        elif target in small and form is not None:
            place(model, owner, form.store(stored.entries[name].tensor().to(device, dtype)))
            give_back()
        elif target in away.names:
            away.put_stored(model, owner, stored.entries[name])
        else:
            read = stored.entries[name].tensor().to(device, dtype)
            model.load_state_dict({target: read}, strict=False, assign=True)
    if model.shape.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.generation_config = read_generation_config(stored.folder)
    return model


def _matched(model: CausalLM, stored: Stored, packed: Mapping[str, Packed]) -> dict[str, str]:
    """Stored name -> name in the model, for the tensors to read.  ModelError with every name and shape that differs."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parts = {part for weight in packed.values() for part in weight.parts}
    found = {name: e.shape for name, e in stored.entries.items() if not _recomputed(name) and name not in parts}
    found |= {name: weight.shape for name, weight in packed.items()}
    source_of = {name: name for name in found}
    if model.shape.tied:
        wanted.pop(HEAD)
        source_of = _untied(source_of)
    target_of = {target: name for name, target in source_of.items()}
    problems = [f"{stored.folder}: no tensor {name}" for name in wanted if name not in target_of]
    problems += [
        f"{stored.folder}: {name} is no tensor of a {model.config.model_type} model of this config"
        for name, target in source_of.items()
        if target not in wanted
    ]
    problems += [
        f"{stored.folder}: {name} is {found[target_of[name]]}, the config says {shape}"
        for name, shape in wanted.items()
        if name in target_of and found[target_of[name]] != shape
    ]
    if model.shape.tied and {EMBEDDING, HEAD} <= found.keys() and not stored.same(EMBEDDING, HEAD):
        problems.append(f"{stored.folder}: {HEAD} differs from {EMBEDDING}, and the config ties them; correct either")
    if problems:
        raise ModelError.of(problems)
    return source_of


def _untied(source_of: dict[str, str]) -> dict[str, str]:
    """A tied base may store its one matrix under either name, or twice."""
    if EMBEDDING in source_of:
        return {name: target for name, target in source_of.items() if target != HEAD}
    return {name: EMBEDDING if target == HEAD else target for name, target in source_of.items()}


def _recomputed(name: str) -> bool:
    """Old checkpoints store the frequencies of the rotation, which follow from the config."""
    return name.endswith(".rotary_emb.inv_freq")


def _finished(model: Any, source: str | Path, folder: Path, form: Quantisation | None) -> nn.Module:
    give_back()
    model.eval().requires_grad_(False)
    model.tokenizer = read_tokenizer(folder)
    model.source, model.quantised_here = str(source), form
    model.base_fingerprint = fingerprint_of_folder(folder)
    model.base_digest = whole_digest(folder, at_most=WHOLE_AT_MOST)
    return model
