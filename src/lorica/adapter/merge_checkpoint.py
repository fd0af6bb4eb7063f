"""merge_checkpoint: base folder + adapter folder -> a checkpoint that any loader of the base reads.

Shard by shard: a shard of the base is mapped, its adapted weights are merged in float32 or better and rounded once to
the type they are stored in, and it is written under its own name.  In memory at a time: merged weights of one shard.
"""

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica import durable
from lorica.adapter import lineage
from lorica.adapter.effect import inert_at, not_finished, unfinished, without_effect
from lorica.adapter.file import AdapterFile, read
from lorica.adapter.lineage import Parent
from lorica.adapter.load import load, plan_on, require_base
from lorica.adapter.manifest import FORMAT, NAME, versions
from lorica.adapter.merge import apart, checked, merged_bias, merged_weight, require_in_weights, require_mergeable
from lorica.adapter.origin import loading_of
from lorica.adapter.plan import Plan, PlannedEdit
from lorica.adapter.proof import Comparison, Proof, Record, Unprobed, recorded_dtype
from lorica.adapter.resized import settled
from lorica.errors import AdapterError
from lorica.kernels import DenseWeight
from lorica.methods.contract import Start
from lorica.models import Quantisation, load_base, load_tokenizer, shapes_only
from lorica.models.fingerprint import fingerprint_of_folder
from lorica.models.folder import folder_of
from lorica.models.foreign import stated_quantisation
from lorica.models.loading import parse_dtype
from lorica.models.quantised import quantisable
from lorica.models.stored import INDEX, Stored
from lorica.models.vocabulary import missing_tokens
from lorica.models.walking import tied_names
from lorica.site import Site

Onto = Literal["dequantised", "original"]
DESCRIPTIONS = ("*.json", "*.model", "*.txt", "*.jinja")
"""The files beside the weights that a checkpoint needs: config and tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged checkpoint: its folder, how many weights changed and by how much at most, and the bytes of its files.

    outputs: how far it answers a probe from base and adapter together; where none was made, `unprobed` says why.
    """

    folder: str
    base: str
    adapter: str
    weights: int
    largest_change: float
    changed_most: str
    bytes: int
    outputs: Comparison | None = None
    unprobed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        outputs = None if self.outputs is None else self.outputs.to_dict()
        largest = None if self.outputs is None else self.outputs.deviation
        return {**self.__dict__, "outputs": outputs, "largest_difference": largest}

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.weights} weights of {self.base} merged with {self.adapter}, "
            f"{self.bytes / 1e9:.3f} GB; largest change of a weight {self.largest_change:.4g} ({self.changed_most})\n"
            f"outputs: {self.outputs or f'not compared, {self.unprobed}'}"
        )


def merge_checkpoint(
    base: str | Path,
    adapter: str | Path | AdapterFile,
    out: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    onto: Onto = "dequantised",
    untrained: bool = False,
    other_base: bool = False,
    unprobed: str | None = None,
) -> Merged:
    """Writes the checkpoint of `base` with `adapter` in its weights to the new folder `out`.

    dtype                   the type that every weight is written in; None: each as the base stores it
    onto                    of an adapter that was trained on a quantised base: `dequantised`, the numbers that it was
                            trained beside, or `original`, the base's own, beside which the outputs move by what
                            quantising took away; how far is in `outputs`
    untrained, other_base   as in `load`
    unprobed                why the outputs are not to be compared, which takes one whole model in memory at a time

    AdapterError, and nothing written, where the adapter does not fit, changes nothing, is not finished or cannot be
    merged, and where the merged outputs are further from the adapted ones than rounding explains.  RunError where `out`
    holds something.
    """
    source, kind = folder_of(base), parse_dtype(dtype)
    file = adapter if isinstance(adapter, AdapterFile) else read(adapter)
    shapes: Any = shapes_only(source)
    shapes.base_fingerprint = fingerprint_of_folder(source)
    if not other_base:
        require_base(file, shapes)
    _require_rows(file, shapes, source)
    _require_dense(base, shapes)
    file = settled(shapes, file)
    merge = _Merge(shapes, file, Stored(source), kind, _Quantising.of(file, shapes, onto))
    if not untrained and (reason := unfinished(merge.plan, file.tensors)):
        raise AdapterError(not_finished(file.where, reason))
    with durable.new_folder(out) as folder:
        before = Unprobed(unprobed) if unprobed else _adapted(source, file, merge.kind, other_base)
        compare = apart if merge.quantising.leaves else checked
        merge.write_shards(folder)
        if not merge.effective and not untrained:
            raise AdapterError(without_effect(file.where))
        _copy_descriptions(source, folder, untied=bool(merge.untied), kind=kind)
        outputs = _outputs(folder.path, merge.kind, before, compare)
        folder.write_json(NAME, _record(base, shapes.base_fingerprint, file, outputs))
        size = sum(record["bytes"] for record in folder.records().values())
    name, change = max(merge.changes.items(), key=lambda item: item[1])
    return Merged(
        folder=str(out),
        base=str(base),
        adapter=file.where,
        weights=len(merge.changes),
        largest_change=change,
        changed_most=name,
        bytes=size,
        outputs=outputs,
        unprobed=before.reason if isinstance(before, Unprobed) else None,
    )


def _require_dense(base: str | Path, shapes: Any) -> None:
    stored = stated_quantisation(shapes.config)
    if stored is not None:
        raise AdapterError(
            f"{base} is stored as {stored}, and a merge writes 16 bits: give the full-precision base with --model, "
            "or merge in memory: lorica.load(model, ...).merge().save_pretrained(...)"
        )


def _adapted(source: Path, file: AdapterFile, kind: torch.dtype, other_base: bool) -> Record:
    """What base and adapter answer together, in the type that the merged weights get."""
    form = loading_of(file.manifest)
    then = recorded_dtype(file.manifest) if form else None
    model = load_base(source, dtype=then or kind, device="cpu", **form)
    return load(model, file, trainable=False, untrained=True, other_base=other_base).proof()


def _outputs(
    merged: Path, kind: torch.dtype, before: Record, compare: Callable[[nn.Module, Record], Comparison | None]
) -> Comparison | None:
    if not isinstance(before, Proof):
        return None
    gc.collect()  # the base is gone before the merged model is loaded: never two of them in memory
    return compare(load_base(merged, dtype=kind, device="cpu"), before)


def _record(base: str | Path, fingerprint: str, file: AdapterFile, outputs: Comparison | None) -> dict[str, Any]:
    """lorica.json of a merged checkpoint: its lineage, and how far its outputs moved."""
    return {
        "format": FORMAT,
        "base": {"source": str(base), "fingerprint": fingerprint, "hashed": "checkpoint"},
        "outputs": None if outputs is None else outputs.to_dict(),
        "versions": versions(),
        **lineage.facts("merged", (Parent(file.digest, file.where),)),
    }


def _require_rows(file: AdapterFile, shapes: Any, source: Path) -> None:
    """A checkpoint keeps the shapes of its base: tokens that were added since have no row in it, or no name."""
    shapes.tokenizer = load_tokenizer(source)
    lacking = missing_tokens(shapes, (file.manifest or {}).get("added_tokens") or ())
    if lacking:
        raise AdapterError(
            f"{file.where}: trained with tokens that this base lacks, {list(lacking)}; merge it in memory instead: "
            "lorica.add_tokens(model, ...), lorica.load(model, ...).merge().save_pretrained(...)"
        )


@dataclass(frozen=True)
class _Quantising:
    """What became of the weights that the adapter was trained beside: the names of those that were quantised.

    leaves: they are merged as the base has them, and the difference is told.
    """

    form: Quantisation | None
    dtype: torch.dtype
    names: frozenset[str]
    leaves: bool

    @classmethod
    def of(cls, file: AdapterFile, shapes: nn.Module, onto: Onto) -> "_Quantising":
        facts = loading_of(file.manifest)
        form = Quantisation.of(**facts) if facts else None
        dtype = parse_dtype(recorded_dtype(file.manifest))
        names = frozenset(f"{name}.weight" for name in quantisable(shapes)) if form else frozenset[str]()
        return cls(form, dtype or next(shapes.parameters()).dtype, names, form is not None and onto == "original")

    def read(self, names: set[str], tensor: Tensor) -> Tensor:
        """A tensor of the base as it was under the adapter, in the type it is stored in."""
        if self.form is None or self.leaves or not names & self.names:
            return tensor
        return self.form.store(tensor.to(self.dtype)).dense().to(tensor.dtype)


@dataclass(eq=False)
class _Merge:
    """The work: which stored tensor each edit changes, and what changed so far."""

    model: nn.Module
    file: AdapterFile
    stored: Stored
    asked: torch.dtype | None
    quantising: "_Quantising"
    changes: dict[str, float] = field(default_factory=dict)
    effective: bool = False
    """Whether some edit that was merged changes what the base computes."""

    def __post_init__(self) -> None:
        self.plan: Plan = plan_on(self.model, self.file, self.stored)
        require_in_weights(self.plan)
        self.ties = tied_names(self.model)
        self.edits: dict[str, PlannedEdit] = {}
        self.biases: dict[str, PlannedEdit] = {}
        self.untied: dict[str, PlannedEdit | None] = {}
        for planned in self.plan.edits:
            self._place(planned)
            self._place_bias(planned)

    @property
    def kind(self) -> torch.dtype:
        """The type of the merged weights, or of most of them."""
        return self.asked or self.stored.dtype

    def _place(self, planned: PlannedEdit) -> None:
        """An adapted weight that is tied is stored twice from now on: once merged, once as it was."""
        parameter = planned.site.name if planned.site.kind == "parameter" else planned.site.weight
        tied = self.ties.get(parameter, ())
        stored = next((s for s in map(self._stored_name, (parameter, *tied)) if s is not None), None)
        if stored is None:
            raise AdapterError(
                f"{self.stored.folder}: no tensor for {parameter} of {type(self.model).__name__}, which is made of "
                "others as it loads; merge in memory: lorica.load(model, ...).merge().save_pretrained(...)"
            )
        if not tied or (planned.edit.place == "instead" and not planned.site.alone):
            self.edits[stored] = planned
        elif len(tied) == 1 and self._stored_name(parameter) == stored:
            self.edits[stored], self.untied[self._like(stored, parameter, tied[0])] = planned, None
        elif len(tied) == 1:
            self.untied[self._like(stored, tied[0], parameter)] = planned
        else:
            raise AdapterError(f"{parameter} is tied with {', '.join(tied)}; merging it alone is not possible")

    def _place_bias(self, planned: PlannedEdit) -> None:
        stored = self._stored_name(f"{planned.site.name}.bias") if planned.site.bias else None
        if planned.edit.place == "around" and stored is not None:
            self.biases[stored] = planned

    def _stored_name(self, parameter: str) -> str | None:
        return self.stored.named(parameter, getattr(self.model, "base_model_prefix", ""))

    @staticmethod
    def _like(stored: str, parameter: str, other: str) -> str:
        """The stored name of `other`, prefixed as `parameter` is."""
        return other if stored == parameter or not stored.endswith(parameter) else stored[: -len(parameter)] + other

    def write_shards(self, folder: durable.Folder) -> None:
        weight_map: dict[str, str] = {}
        total = 0
        for path, shard in zip(self.stored.files, self.stored.shards(), strict=True):
            tensors = dict(self._merged({name: self._read(name, shard.tensor(name)) for name in shard.names()}))
            folder.write_tensors(path.name, tensors, metadata={"format": "pt"}, finite=True)
            weight_map |= dict.fromkeys(tensors, path.name)
            total += sum(tensor.nbytes for tensor in tensors.values())
        if (self.stored.folder / INDEX).is_file():
            folder.write_json(INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def _read(self, name: str, tensor: Tensor) -> Tensor:
        prefix = getattr(self.model, "base_model_prefix", "") + "."
        tensor = self.quantising.read({name, name.removeprefix(prefix), prefix + name}, tensor)
        return tensor.to(self.asked) if self.asked is not None and tensor.is_floating_point() else tensor

    def _merged(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            edited = tensor if name not in self.edits else self._with_edit(name, tensor, self.edits[name])
            yield name, edited if name not in self.biases else self._with_bias(edited, self.biases[name])
            for other, planned in self.untied.items():
                if self._source_of(other) == name:
                    yield other, tensor if planned is None else self._with_edit(other, tensor, planned)

    def _source_of(self, untied: str) -> str | None:
        tied = (untied, *self.ties.get(untied, ()))
        return next((s for s in map(self._stored_name, tied) if s is not None and s != untied), None)

    def _with_edit(self, name: str, tensor: Tensor, planned: PlannedEdit) -> Tensor:
        with torch.no_grad():
            module = self._module(planned, tensor)
            require_mergeable(self.plan, {planned.key: module})
            whole = planned.edit.place == "instead"
            self.effective = self.effective or not inert_at(tensor if whole else None, module)
            merged = (
                module().detach().to(tensor.dtype) if whole else merged_weight(module, tensor, planned.site.transposed)
            )
        self.changes[name] = float((merged.float() - tensor.float()).abs().max())
        return merged

    def _with_bias(self, bias: Tensor, planned: PlannedEdit) -> Tensor:
        """The weight may lie in another shard: a bias is merged without it."""
        with torch.no_grad():
            return merged_bias(self._module(planned, torch.zeros(self._stored_shape(planned.site))), bias)

    @staticmethod
    def _stored_shape(site: Site) -> tuple[int, ...]:
        return site.shape[::-1] if site.transposed else site.shape

    def _module(self, planned: PlannedEdit, tensor: Tensor) -> nn.Module:
        around = planned.edit.place == "around"
        weight = DenseWeight(tensor, planned.site.transposed) if around else None
        start = Start(torch.Generator(), torch.device("cpu"), torch.float32, weight, None if around else tensor)
        module = planned.edit.build(start)
        for key, held in planned.tensors.items():
            held.of(module).copy_(self.file.tensors[key])
        return module


def _copy_descriptions(source: Path, folder: durable.Folder, *, untied: bool, kind: torch.dtype | None) -> None:
    files = sorted({path for pattern in DESCRIPTIONS for path in source.glob(pattern)})
    for path in files:
        if path.name in (INDEX, NAME):
            continue
        if path.name == "config.json" and (untied or kind is not None):
            config = json.loads(path.read_text(encoding="utf-8"))
            folder.write_json(path.name, _described(config, untied, kind))
        else:
            folder.write_bytes(path.name, path.read_bytes())


def _described(config: Mapping[str, Any], untied: bool, kind: torch.dtype | None) -> dict[str, Any]:
    """config.json of the merged checkpoint; `torch_dtype` is the older name of `dtype`."""
    changes: dict[str, Any] = {"tie_word_embeddings": False} if untied else {}
    if kind is None:
        return {**config, **changes}
    kept = {name: value for name, value in config.items() if name != "torch_dtype"}
    return {**kept, **changes, "dtype": str(kind).removeprefix("torch.")}
