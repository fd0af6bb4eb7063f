"""The adapter folder: adapter_model.safetensors and adapter_config.json as PEFT has them, lorica.json, README.md.

Reading executes nothing: tensors come from safetensors alone, patterns are literal names, `auto_mapping` is ignored,
and all that is wrong is told at once before any of it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lorica import durable
from lorica.adapter import manifest as lorica_json
from lorica.adapter.card import card
from lorica.adapter.fetch import folder_of
from lorica.adapter.peft_format import config_of
from lorica.adapter.plan import Plan
from lorica.errors import AdapterError, LoricaError, did_you_mean
from lorica.methods import METHODS, Method, method_of_peft

TENSORS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"


@dataclass(frozen=True, eq=False, kw_only=True)
class AdapterFile:
    """An adapter as a file holds it.

    where      the folder, as errors name it
    config     adapter_config.json
    methods    what `config` describes
    tensors    by file key, on the CPU when read from a folder
    manifest   lorica.json; None for folders that others wrote
    """

    where: str
    config: Mapping[str, Any]
    methods: tuple[Method, ...]
    tensors: Mapping[str, Tensor]
    manifest: Mapping[str, Any] | None = None
    plan: Plan | None = None

    @classmethod
    def of(cls, model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> "AdapterFile":
        again = {key: t for method in plan.methods for key, t in method.repeated(tensors, plan.base).items()}
        held = {**tensors, **again}
        return cls(where="adapter", config=config_of(model, plan), methods=plan.methods, tensors=held, plan=plan)

    @property
    def peft(self) -> bool:
        """Written as PEFT writes it, so that where it sits is read off its tensors' names."""
        return "peft_type" in self.config

    @property
    def base(self) -> str | None:
        """The base that the adapter says it was trained on."""
        named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) else None


def write(folder: str | Path, adapter: AdapterFile, model: nn.Module, facts: Mapping[str, Any]) -> Path:
    """The adapter of a model as a folder, which appears whole or not at all."""
    target = Path(folder)
    assert adapter.plan is not None
    wide = {key: _as_trained(tensor) for key, tensor in adapter.tensors.items()}
    with durable.new_folder(target, replace=(target / CONFIG).is_file()) as draft:
        draft.write_tensors(TENSORS, wide, metadata={"format": "pt"}, finite=True)
        draft.write_json(CONFIG, dict(adapter.config), sort_keys=True)
        records = {name: record for name, record in draft.records().items() if name in (TENSORS, CONFIG)}
        draft.write_json(lorica_json.NAME, lorica_json.manifest(model, adapter.methods, records, facts))
        draft.write_text(CARD, card(adapter.plan, adapter.base, facts, adapter.peft))
    return target


def _as_trained(tensor: Tensor) -> Tensor:
    """In float32 whatever the type in memory, on the CPU; float64 is narrowed, as other tools expect float32."""
    return tensor.detach().to("cpu", torch.float32).contiguous()


def read(source: str | Path) -> AdapterFile:
    """The adapter of a folder or hub id, checked against its own manifest.  AdapterError says all that is wrong."""
    folder = folder_of(source)
    _require_safetensors(folder)
    manifest = _manifest(folder)
    config = _json(folder / CONFIG)
    tensors = _tensors(folder / TENSORS)
    return AdapterFile(
        where=str(source),
        config=config,
        methods=_methods(folder, config, tensors),
        tensors=tensors,
        manifest=manifest,
    )


def _require_safetensors(folder: Path) -> None:
    if (folder / TENSORS).is_file():
        if not (folder / CONFIG).is_file():
            raise AdapterError(f"{folder}: no {CONFIG} beside the tensors; fetch the whole folder")
        return
    if any(folder.glob("*.bin")):
        raise AdapterError(
            f"{folder}: only pickled tensors, which can run code when read; convert them once where you trust them: "
            "PeftModel.from_pretrained(base, folder).save_pretrained(new_folder) of PEFT writes safetensors"
        )
    raise AdapterError(f"{folder}: no {TENSORS}, so it is no adapter folder")


def _manifest(folder: Path) -> dict[str, Any] | None:
    if not (folder / lorica_json.NAME).is_file():
        return None
    manifest = _json(folder / lorica_json.NAME)
    found = manifest.get("format")
    if found != lorica_json.FORMAT:
        raise AdapterError(f"{folder / lorica_json.NAME}: format {found!r} is not {lorica_json.FORMAT}; upgrade lorica")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(record, dict) for record in files.values()):
        raise AdapterError(f"{folder / lorica_json.NAME}: `files` is damaged; fetch the folder again")
    problems = [f"{name} is not in the manifest" for name in (TENSORS, CONFIG) if name not in files]
    problems += durable.differences(folder, files)
    if problems:
        raise AdapterError.of([f"{folder}: {problem}; fetch or copy it again" for problem in problems])
    return manifest


def _json(path: Path) -> dict[str, Any]:
    try:
        value = durable.read_json(path)
    except LoricaError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path}: damaged ({str(error).splitlines()[0]}); fetch or copy it again") from error
    problems = [] if tensors else [f"{path}: holds no tensor"]
    problems += [
        f"{path}: {key} is empty, as sharded training leaves it" for key in tensors if not tensors[key].numel()
    ]
    problems += [f"{path}: {key} is {t.dtype}" for key, t in tensors.items() if not t.is_floating_point()]
    if problems:
        raise AdapterError.of(problems)
    return tensors


def _methods(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Method, ...]:
    where = folder / CONFIG
    try:
        if "peft_type" in config:
            return (method_of_peft(config["peft_type"]).from_file(config, tensors.keys()),)
        listed = config.get("methods")
        if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
            raise AdapterError("neither peft_type nor methods says what adapter this is")
        return tuple(_own_method(entry, tensors) for entry in listed)
    except LoricaError as error:
        raise AdapterError.of([f"{where}: {line}" for line in str(error).splitlines()]) from error


def _own_method(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Method:
    name = entry.get("name")
    if name not in METHODS:
        raise AdapterError(f"method {name!r} is not known here{did_you_mean(str(name), METHODS)}")
    fields = {key: value for key, value in entry.items() if key != "name"}
    try:
        return METHODS[name].model_validate(fields)
    except ValueError as error:
        raise AdapterError(f"{name}: {' '.join(str(error).split())}") from error
