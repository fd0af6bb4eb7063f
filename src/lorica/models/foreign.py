"""What transformers knows of a base: its config, its class, its tokenizer.  Code from a repository is never run."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.errors import ModelError, did_you_mean
from lorica.models.quiet import first_line, quiet

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
)


def _transformers() -> Any:
    """The library, without its types: a type checker reads a thousand files of models for them (20 of its 48 s)."""
    return import_module("transformers")


def read_config(folder: Path) -> Any:
    """The config of a folder, of transformers' own class for it.  ModelError where there is none."""
    raw = _raw_config(folder)
    library = _transformers()
    kind = raw.get("model_type")
    if kind not in library.CONFIG_MAPPING:
        raise ModelError(_unknown_kind(folder, raw, kind, library.CONFIG_MAPPING.keys()))
    if raw.get("quantization_config"):
        raise ModelError(f"{folder}: the weights are stored quantised; give the folder of the full-precision base")
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


def _unknown_kind(folder: Path, raw: dict[str, Any], kind: Any, known: Any) -> str:
    transformers = _transformers()
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
    transformers = _transformers()
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


def load_foreign(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """A model of transformers with the folder's weights, every one of them found and of the right shape."""
    kind: Any = model_class(folder, config)
    try:
        with quiet():
            model, told = kind.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # every family loads by code of its own, which may raise anything
        raise ModelError(f"{folder}: {kind.__name__} cannot be loaded ({first_line(error)})") from error
    problems = [f"{folder}: no tensor for {name} of {kind.__name__}" for name in sorted(told["missing_keys"])]
    problems += [
        f"{folder}: {name} is {tuple(stored)}, the config says {tuple(wanted)}"
        for name, stored, wanted in sorted(told["mismatched_keys"])
    ]
    if problems:
        raise ModelError.of(problems)
    return model


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the weights; None where the folder has none (models of images)."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        with quiet():
            return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers fail as whatever their library raises
        raise ModelError(f"{folder}: the tokenizer cannot be read ({first_line(error)})") from error


def read_generation_config(folder: Path) -> Any:
    """What the base's authors say of generating with it, its stop tokens above all; None where they say nothing."""
    if not (folder / "generation_config.json").is_file():
        return None
    try:
        return _transformers().GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{folder / 'generation_config.json'}: {first_line(error)}") from error
