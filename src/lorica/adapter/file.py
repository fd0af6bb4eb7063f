"""The adapter folder: adapter_model.safetensors and adapter_config.json as PEFT has them, lorica.json, README.md.

Reading executes nothing: tensors come from safetensors alone, patterns are literal names, `auto_mapping` is ignored,
and all that is wrong is told at once before any of it is used.
"""

import hashlib
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorica import durable
from lorica.adapter import manifest as lorica_json
from lorica.adapter.card import card
from lorica.adapter.fetch import folder_of
from lorica.adapter.manifest import Ground
from lorica.adapter.peft_format import config_of
from lorica.adapter.plan import Plan
from lorica.adapter.proof import Record, recorded
from lorica.adapter.tensors import Bytes, refusal
from lorica.adapter.tensors import tensors as read_tensors
from lorica.errors import AdapterError, LoricaError, did_you_mean
from lorica.methods import METHODS, Method, method_of_peft
from lorica.methods.peft_config import OWN_NAME

TENSORS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
LARGEST_JSON = 2 << 20
"""Bytes of adapter_config.json and of lorica.json: a value of JSON takes up to 25 times its text in memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AdapterFile:
    """An adapter as a file holds it.

    where      the folder, as errors name it
    config     adapter_config.json
    methods    what `config` describes
    tensors    by file key, on the CPU when read from a folder
    manifest   lorica.json; None for folders that others wrote
    digest     SHA-256 of the tensors' file; None in memory
    """

    where: str
    config: Mapping[str, Any]
    methods: tuple[Method, ...]
    tensors: Mapping[str, Tensor]
    manifest: Mapping[str, Any] | None = None
    digest: str | None = None
    plan: Plan | None = None

    @classmethod
    def of(cls, model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> "AdapterFile":
        """The file of these tensors by key of the plan."""
        again = {key: t for method in plan.methods for key, t in method.repeated(tensors, plan.base).items()}
        held, config = {**tensors, **again}, config_of(model, plan)
        if "peft_type" in config:
            held = plan.methods[0].packed(held, plan.of(plan.methods[0]))
        return cls(where="adapter", config=config, methods=plan.methods, tensors=held, plan=plan)

    @property
    def peft(self) -> bool:
        """Written as PEFT writes it, so that where it sits is read off its tensors' names."""
        return "peft_type" in self.config

    @property
    def base(self) -> str | None:
        """The base that the adapter says it was trained on."""
        named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Held:
    """The bytes of an adapter folder, which are those that its lorica.json recorded, where it has one."""

    folder: Path
    where: str
    contents: Mapping[str, Bytes]
    manifest: Mapping[str, Any] | None


def write(
    folder: str | Path,
    adapter: AdapterFile,
    ground: Ground,
    facts: Callable[[str], Mapping[str, Any]],
    proof: Callable[[str], Record],
) -> Path:
    """The adapter of a base as a folder, whole or not at all; facts and proof are asked for by digest."""
    target = Path(folder)
    assert adapter.plan is not None
    durable.sweep(target.parent, target.name)
    wide = {key: _as_trained(tensor) for key, tensor in adapter.tensors.items()}
    with durable.new_folder(target, replace=(target / CONFIG).is_file()) as draft:
        draft.write_tensors(TENSORS, wide, metadata={"format": "pt"}, finite=True)
        draft.write_json(CONFIG, dict(adapter.config), sort_keys=True)
        records = {name: record for name, record in draft.records().items() if name in (TENSORS, CONFIG)}
        digest = records[TENSORS]["sha256"]
        told = facts(digest)
        manifest = lorica_json.manifest(ground, adapter.methods, records, proof(digest), told)
        draft.write_json(lorica_json.NAME, manifest)
        draft.write_text(CARD, card(adapter.plan, adapter.base, told, adapter.peft, manifest["base"].get("load", {})))
    return target


def _as_trained(tensor: Tensor) -> Tensor:
    """In float32 whatever the type in memory, on the CPU; float64 is narrowed, as other tools expect float32."""
    return tensor.detach().to("cpu", torch.float32).contiguous()


def read(source: str | Path) -> AdapterFile:
    """The adapter of a folder or hub id, checked against its own manifest.  AdapterError says all that is wrong."""
    return understood(held(source))


def held(source: str | Path) -> Held:
    """The first half of `read`: AdapterError names every file that is not as it was written."""
    folder = folder_of(source)
    _require_safetensors(folder)
    return _held(folder, _files(folder), str(source))


def parsed(folder: Path, contents: Mapping[str, Bytes], where: str) -> AdapterFile:
    """The adapter whose files hold these bytes; the bytes that are hashed are those that are used.

    With lorica.json, any change of the tensors or of adapter_config.json is an AdapterError.  Without, there is no
    record to compare with: what is accepted is whole, finite and understood, and may still differ from what was saved.
    """
    return understood(_held(folder, contents, where))


def understood(held: Held) -> AdapterFile:
    """The second half of `read`."""
    folder, contents, manifest = held.folder, held.contents, held.manifest
    recorded(manifest)
    config = _json(contents[CONFIG], folder / CONFIG)
    config |= _beyond_peft(config, manifest)
    tensors = _plainly_named(folder, config, read_tensors(contents[TENSORS], str(folder / TENSORS)))
    return AdapterFile(
        where=held.where,
        config=config,
        methods=_methods(folder, config, tensors),
        tensors=tensors,
        manifest=manifest,
        digest=_sha256(contents[TENSORS]) if manifest is None else manifest["files"][TENSORS]["sha256"],
    )


def _beyond_peft(config: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """What lorica.json says of the method that a config of PEFT cannot: its name, and fields of its own."""
    listed = (manifest or {}).get("methods")
    told = listed[0] if isinstance(listed, list) and len(listed) == 1 else None
    if not isinstance(told, dict) or "peft_type" not in config:
        return {}
    method = METHODS.get(str(told.get("name")))
    if method is None or not method.beyond_peft or method.peft_type != config["peft_type"]:
        return {}
    return {OWN_NAME: method.kind, **{name: told[name] for name in method.beyond_peft if name in told}}


def _files(folder: Path) -> dict[str, Bytes]:
    names = (TENSORS, CONFIG, lorica_json.NAME)
    return {name: _contents(folder / name) for name in names if (folder / name).is_file()}


def _contents(path: Path) -> Bytes:
    """Mapped rather than copied, since a fully trained base makes a file of many gigabytes; a change in memory, which
    torch must be able to make, is not one of the file."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if path.stat().st_size else bytearray()
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _sha256(data: Bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    within = sorted(place.parent.name for place in folder.glob(f"*/{TENSORS}"))
    if within:
        raise AdapterError(f"{folder}: no {TENSORS} here, but in {', '.join(within)}; name one, {folder / within[0]}")
    raise AdapterError(f"{folder}: no {TENSORS}, so it is no adapter folder")


def _held(folder: Path, contents: Mapping[str, Bytes], where: str) -> Held:
    manifest = None
    if lorica_json.NAME in contents:
        manifest = _json(contents[lorica_json.NAME], folder / lorica_json.NAME)
        _require_as_recorded(manifest, folder, contents)
    return Held(folder=folder, where=where, contents=contents, manifest=manifest)


def _require_as_recorded(manifest: Mapping[str, Any], folder: Path, contents: Mapping[str, Bytes]) -> None:
    where = folder / lorica_json.NAME
    if manifest.get("format") != lorica_json.FORMAT:
        raise AdapterError(f"{where}: format {manifest.get('format')!r} is not {lorica_json.FORMAT}; upgrade lorica")
    files, base = manifest.get("files"), manifest.get("base", {})
    if not isinstance(files, dict) or not all(isinstance(record, dict) for record in files.values()):
        raise AdapterError(f"{where}: `files` is damaged; fetch the folder again")
    if not isinstance(base, dict):
        raise AdapterError(f"{where}: `base` is damaged; fetch the folder again")
    problems = [f"{name} is not in the manifest" for name in (TENSORS, CONFIG) if name not in files]
    problems += [_difference(name, contents[name], files[name]) for name in (TENSORS, CONFIG) if name in files]
    try:
        problems += durable.differences(folder, {name: files[name] for name in files if name not in contents})
    except LoricaError as error:
        problems.append(str(error))
    if any(problems):
        raise AdapterError.of([f"{folder}: {problem}; fetch or copy it again" for problem in problems if problem])


def _difference(name: str, data: Bytes, record: Mapping[str, Any]) -> str:
    if len(data) != record.get("bytes"):
        return f"{name} has {len(data)} bytes, not {record.get('bytes')!r}"
    same = _sha256(data) == record.get("sha256")
    return "" if same else f"{name} does not have its recorded SHA-256"


def _json(data: Bytes, path: Path) -> dict[str, Any]:
    if len(data) > LARGEST_JSON:
        raise AdapterError(f"{path}: {len(data)} bytes; the largest it may have is {LARGEST_JSON}")
    try:
        value = durable.json_value(bytes(data), path)
    except LoricaError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _plainly_named(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A PEFT file's tensors under the keys that PEFT itself writes."""
    if "peft_type" not in config:
        return tensors
    method = _peft_method(folder, config)
    try:
        return {key: tensors[spelled] for spelled, key in method.plain_keys(tensors).items()}
    except AdapterError as error:
        raise AdapterError.of([f"{folder / TENSORS}: {line}" for line in str(error).splitlines()]) from error


def _peft_method(folder: Path, config: Mapping[str, Any]) -> type[Method]:
    try:
        return method_of_peft(config)
    except LoricaError as error:
        raise refusal(str(folder / CONFIG), str(error).splitlines()) from error


def _methods(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Method, ...]:
    where = folder / CONFIG
    try:
        if "peft_type" in config:
            return (method_of_peft(config).from_file(config, tensors.keys()),)
        listed = config.get("methods")
        if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
            raise AdapterError("neither peft_type nor methods says what adapter this is")
        return tuple(_own_method(entry, tensors) for entry in listed)
    except LoricaError as error:
        raise refusal(str(where), str(error).splitlines()) from error


def _own_method(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Method:
    name = entry.get("name")
    if not isinstance(name, str) or name not in METHODS:
        raise AdapterError(f"method {name!r} is not known here{did_you_mean(str(name), METHODS)}")
    fields = {key: value for key, value in entry.items() if key != "name"}
    try:
        return METHODS[name].model_validate(fields)
    except ValueError as error:
        raise AdapterError(f"{name}: {' '.join(str(error).split())}") from error
