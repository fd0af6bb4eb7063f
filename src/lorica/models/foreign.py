"""What transformers knows of a base: its config, its class, its tokenizer.  Code from a repository is never run."""

import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.errors import ModelError, did_you_mean
from lorica.models.arriving import quantising, unread
from lorica.models.heads import Head, draw, head_class, head_modules, may_be_drawn, with_answers
from lorica.models.quantised import Quantisation, forget_stated
from lorica.models.quiet import first_line, quiet
from lorica.models.stored import Stored

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
)


def transformers_library() -> Any:
    """The library, without its types: a type checker reads a thousand files of models for them (20 of its 48 s)."""
    return import_module("transformers")


def read_config(folder: Path) -> Any:
    """The config of a folder, of transformers' own class for it.  ModelError where there is none."""
    raw = _raw_config(folder)
    library = transformers_library()
    kind = raw.get("model_type")
    if kind not in library.CONFIG_MAPPING:
        raise ModelError(_unknown_kind(folder, raw, kind, library.CONFIG_MAPPING.keys()))
    _refuse_other_quantisation(folder, raw.get("quantization_config"))
    try:
        with quiet():
            return library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a config is checked by code of its own, which may raise anything
        raise ModelError(f"{folder / 'config.json'}: {first_line(error)}") from error


def _raw_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: not readable as JSON ({first_line(error)})") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{file}: not a JSON object")
    return raw


def _refuse_other_quantisation(folder: Path, stated: Any) -> None:
    method = stated.get("quant_method", "bitsandbytes") if isinstance(stated, dict) else stated
    if method and method != "bitsandbytes":
        raise ModelError(
            f"{folder}: the weights are stored quantised by {method!r}, and here bitsandbytes' forms are read; "
            "give the folder of the full-precision base, with quantize: nf4"
        )


def stated_quantisation(config: Any) -> Quantisation | None:
    """How bitsandbytes quantised the checkpoint of this config; None where it did not."""
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return None
    given = stated if isinstance(stated, dict) else stated.to_dict()
    if given.get("load_in_8bit"):
        return Quantisation(form="int8")
    form = given.get("bnb_4bit_quant_type", "fp4")
    return Quantisation(form=form, double=bool(given.get("bnb_4bit_use_double_quant")))


def _unknown_kind(folder: Path, raw: dict[str, Any], kind: Any, known: Any) -> str:
    transformers = transformers_library()
    if raw.get("auto_map"):
        return (
            f"{folder}: needs code from its own repository (auto_map), which lorica never runs; use a base without it"
        )
    if kind is None:
        return f"{folder / 'config.json'}: no model_type, so it does not say what model this is"
    near = did_you_mean(str(kind), known)
    return (
        f"{folder}: model_type {kind!r} is unknown to transformers {transformers.__version__}{near or '; upgrade it'}"
    )


def model_class(folder: Path, config: Any) -> type[nn.Module]:
    """transformers' class of the first architecture that the config names, else the one it gives the bare model."""
    transformers = transformers_library()
    names = getattr(config, "architectures", None) or []
    found = getattr(transformers, names[0], None) if names else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    if names and getattr(config, "auto_map", None):
        raise ModelError(f"{folder}: {names[0]} needs code from its own repository (auto_map), which lorica never runs")
    if names:
        raise ModelError(f"{folder}: transformers {transformers.__version__} has no {names[0]}; upgrade it")
    bare: Any = transformers.MODEL_MAPPING[type(config)]
    return bare


def load_foreign(
    folder: Path, config: Any, dtype: torch.dtype, head: Head | None = None, form: Quantisation | None = None
) -> nn.Module:
    """A model of transformers with the folder's weights, every one of them found and of the right shape, but for what
    is drawn of a head; its linears quantised as they are read where a form is given."""
    if head is not None:
        return _with_head(folder, config, dtype, head, form)
    kind: Any = model_class(folder, config)
    model, told = _loaded(kind, folder, config, dtype, form)
    _require_whole(kind, folder, told["missing_keys"], told["mismatched_keys"])
    return model


def _with_head(folder: Path, config: Any, dtype: torch.dtype, head: Head, form: Quantisation | None) -> nn.Module:
    kind: Any = head_class(folder, config, head)
    kept = head.fits(config) and kind.__name__ in (getattr(config, "architectures", None) or ())
    model, told = _loaded(kind, folder, with_answers(config, head), dtype, form, head=True)
    missing, other = set(told["missing_keys"]), list(told["mismatched_keys"])
    lost = {name for name in missing if not may_be_drawn(model, name)}
    strange = [entry for entry in other if not may_be_drawn(model, entry[0])]
    _require_whole(kind, folder, lost, strange)
    drawn = {*missing, *(entry[0] for entry in other)}
    if not kept:
        drawn.update(name for name, _ in model.named_parameters() if may_be_drawn(model, name) and "pooler" not in name)
    draw(model, sorted(drawn), head)
    model.head, model.head_modules = head, head_modules(model, drawn)
    return model


def _loaded(
    kind: Any, folder: Path, config: Any, dtype: torch.dtype, form: Quantisation | None, head: bool = False
) -> tuple[Any, Any]:
    asked = {"config": config, "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            if form is None or getattr(type(config), "extra_files", ()):
                return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **asked)
            return _arrived(kind, folder, form, head, asked)
    except Exception as error:  # every family loads by code of its own, which may raise anything
        raise ModelError(f"{folder}: {kind.__name__} cannot be loaded ({first_line(error)})") from error


def _arrived(kind: Any, folder: Path, form: Quantisation, head: bool, asked: dict[str, Any]) -> tuple[Any, Any]:
    """Without the folder's name transformers leaves out what it reads beside the weights."""
    how = quantising(form, head=head)
    model, told = kind.from_pretrained(None, state_dict=unread(Stored(folder)), quantization_config=how, **asked)
    forget_stated(asked["config"])
    model.name_or_path = model.config._name_or_path = str(folder)
    if model.can_generate():
        here = {"local_files_only": True, "trust_remote_code": False, "subfolder": "", "revision": "main"}
        unused = dict.fromkeys(("cache_dir", "force_download", "proxies", "token"))
        model.adjust_generation_fn(None, False, False, str(folder), **here, **unused)
    return model, told


def _require_whole(kind: Any, folder: Path, missing: Iterable[str], mismatched: Iterable[Any]) -> None:
    problems = [f"{folder}: no tensor for {name} of {kind.__name__}" for name in sorted(missing)]
    problems += [
        f"{folder}: {name} is {tuple(stored)}, the config says {tuple(wanted)}"
        for name, stored, wanted in sorted(mismatched)
    ]
    if problems:
        raise ModelError.of(problems)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the weights; None where the folder has none (models of images)."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        with quiet():
            return transformers_library().AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # tokenizers fail as whatever their library raises
        raise ModelError(f"{folder}: the tokenizer cannot be read ({first_line(error)})") from error


def read_generation_config(folder: Path) -> Any:
    """What the base's authors say of generating with it, its stop tokens above all; None where they say nothing."""
    if not (folder / "generation_config.json").is_file():
        return None
    try:
        return transformers_library().GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{folder / 'generation_config.json'}: {first_line(error)}") from error
