"""combine and resize: adapters made of adapters, on the base where one is at hand, else from their files alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lorica.adapter import AdapterFile, lineage, read
from lorica.adapter.combine import How, Weighed, joined, weighed
from lorica.adapter.deltas import deltas
from lorica.adapter.derived import derived, saved
from lorica.adapter.file import TENSORS
from lorica.adapter.lineage import Parent
from lorica.adapter.outcome import Combined, Gate, Resized, combined_facts, resized_facts
from lorica.adapter.proof import recorded_dtype
from lorica.adapter.resize import Size, resized
from lorica.api.merging import without_room
from lorica.api.recorded import base_for, base_of
from lorica.api.scoring import evaluate
from lorica.errors import AdapterError, RequestError
from lorica.models import add_tokens
from lorica.models.folder import CONFIG, PACKAGE, folder_of, is_hub_id
from lorica.models.vocabulary import missing_tokens
from lorica.train import Reporter

Place = str | Path
FETCHED = "its base is not on this machine; name it with --model to record what it answers"
LARGEST = torch.finfo(torch.float32).max
"""Of a weight: the file holds float32."""
OF_THE_ROWS = ("recipe", "data", "task")
"""What lorica.json says of how rows are written to the model, which stays as it was where only ranks change."""


def combine(
    adapters: Mapping[Place, float],
    out: Place,
    *,
    how: str = "exact",
    r: int | None = None,
    density: float | None = None,
    seed: int = 0,
    model: str | None = None,
    untrained: bool = False,
    other_base: bool = False,
) -> Combined:
    """Writes the adapter whose change of each weight is the weighted sum of the adapters' own, or stands for it.

    adapters    folders or hub ids of the LoRA family, each with its weight: {"sql": 0.7, "json": 0.3}
    out         a new folder, which PEFT reads too; its scale is 1, alpha = r
    how         exact: the blend itself, of the sum of all ranks.  svd: the best of rank r.  ties, dare, dare_ties,
                magnitude: pruned and joined entry by entry, then cut to rank r; see `lorica.adapter.pruning`
    r           rank of the result; None: at each site the largest that goes in
    density     share of the entries that pruning keeps, 0.5;  seed: of the entries that are dropped
    model       the base, on which the result is checked and its outputs recorded; None: the recorded one, where it is
                on this machine, and otherwise nothing is recorded
    untrained, other_base   as in `load`

    `error` says how far the result is from the blend.  RequestError for a request that has no meaning, AdapterError
    with every reason why these adapters cannot be one.
    """
    asked = How(name=how, r=r, density=density, seed=seed)
    problems = [*_weight_problems(adapters), *asked.problems(), *_taken(out)]
    if problems:
        raise RequestError.of([f"combine: {problem}" for problem in problems])
    files = [read(place) for place in adapters]
    parts = weighed(files, list(adapters.values()), untrained=untrained, other_base=other_base)
    sites = joined(parts, asked)
    file = derived([(each.site, each.made) for each in sites if each.made.rank], files)
    facts = {
        **lineage.facts("combined", [part.parent for part in parts]),
        **combined_facts(asked, sites),
        **_shared(parts),
    }
    unproven = _saved(file, out, list(zip(adapters, files, strict=True)), model, facts, other_base)
    return Combined.of(str(out), asked, parts, sites, _size(out), unproven)


def resize(
    adapter: Place,
    out: Place,
    *,
    r: int | None = None,
    energy: float | None = None,
    data: str | Path | None = None,
    tolerance: float = 0.02,
    model: str | None = None,
    untrained: bool = False,
    other_base: bool = False,
    reporter: Reporter | None = None,
) -> Resized:
    """Writes the best adapter of rank r, or of the least rank that keeps a share of the energy at every site.

    adapter     a folder or hub id of the LoRA family;  out: a new folder, whose scale is 1, alpha = r
    data        rows on which both are scored; AdapterError, and nothing is written, where the loss grows by more than
                `tolerance`
    model       the base, as in `combine`; scoring needs one
    untrained, other_base   as in `load`
    """
    size = Size(r=r, energy=energy)
    problems = [*size.problems(), *_taken(out)]
    if problems:
        raise RequestError.of([f"resize: {problem}" for problem in problems])
    before = read(adapter)
    sites = resized(deltas(before, untrained=untrained), size)
    file = derived([(cut.site, cut.made) for cut in sites], [before])
    known = {name: value for name, value in (before.manifest or {}).items() if name in OF_THE_ROWS}

    def loss(place: Place) -> float:
        base, dtype = model or base_of(adapter, before), recorded_dtype(before.manifest)
        accepted: Any = {"untrained": untrained, "other_base": other_base}
        return evaluate(place, str(data), model=base, dtype=dtype, reporter=reporter, **accepted).metrics["loss"]

    gate = None if data is None else _passed(loss, adapter, file, known, str(data), tolerance)
    parent = Parent(before.digest, before.where)
    facts = {**lineage.facts("resized", [parent]), **resized_facts(size, sites, gate), **known}
    unproven = _saved(file, out, [(adapter, before)], model, facts, other_base)
    return Resized(
        folder=str(out), parent=parent, size=size, sites=sites, bytes=_size(out), gate=gate, unproven=unproven
    )


def _passed(
    loss: Callable[[Place], float],
    adapter: Place,
    after: AdapterFile,
    facts: Mapping[str, Any],
    data: str,
    tolerance: float,
) -> Gate:
    """The losses on both sides.  AdapterError where that of the result is larger by more than the tolerance."""
    with TemporaryDirectory(prefix="lorica-") as place:
        trial = Path(place) / "resized"
        saved(after, trial, "a trial", facts)
        gate = Gate(data=data, before=loss(adapter), after=loss(trial), tolerance=tolerance)
    if not gate.ok:
        raise AdapterError(
            f"resize: {gate}, by more than {tolerance:g}; nothing was written; keep a larger rank or more energy, or "
            "allow more with tolerance (--tolerance)"
        )
    return gate


def _weight_problems(adapters: Mapping[Place, float]) -> Iterator[str]:
    if not adapters:
        yield "names no adapter; say which, with weights: A=0.7 B=0.3"
    for place, weight in adapters.items():
        if weight == 0 or not abs(weight) <= LARGEST:
            yield f"{place}: the weight {weight:g} is none; choose another, or leave it out"


def _taken(out: Place) -> Iterator[str]:
    """Told before any work; what is there may be one of the adapters."""
    place = Path(out)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        yield f"--out {out}: is there already; choose another name"


def _saved(
    file: AdapterFile,
    out: Place,
    parents: Sequence[tuple[Place, AdapterFile]],
    model: str | None,
    facts: Mapping[str, Any],
    other_base: bool,
) -> str | None:
    """On the base where it is at hand; why nothing of it was recorded, where it is not or does not take the adapter."""
    files = [parent for _, parent in parents]
    if model is not None:
        return saved(file, out, _loaded(files[0], file, model), facts, files, other_base=other_base)
    try:
        return saved(file, out, _at_hand(parents, file), facts, files, other_base=other_base)
    except (AdapterError, RequestError) as error:
        return saved(file, out, " ".join(str(error).split()), facts, files)


def _at_hand(parents: Sequence[tuple[Place, AdapterFile]], file: AdapterFile) -> nn.Module | str:
    """The recorded base; the reason where it may not be trusted, is not here, or has no room."""
    reasons = list[str]()
    for place, parent in parents:
        try:
            source = base_of(place, parent)
        except RequestError as error:
            reasons.append(str(error))
            continue
        short = without_room(folder_of(source), None) if _here(source) else FETCHED
        if short is None:
            return _loaded(parent, file, source)
        reasons.append(short)
    return reasons[0]


def _loaded(parent: AdapterFile, file: AdapterFile, source: str) -> nn.Module:
    model = base_for(parent, source, recorded_dtype(parent.manifest))
    lacking = missing_tokens(model, (file.manifest or {}).get("added_tokens") or ())
    if lacking:
        add_tokens(model, lacking)
    return model


def _here(source: str) -> bool:
    """Whether nothing has to be fetched for this base."""
    if source == "embedded" or source.startswith(PACKAGE) or Path(source).exists() or not is_hub_id(source):
        return True
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, CONFIG)
    return isinstance(config, str) and any(Path(config).parent.glob("*.safetensors"))


def _shared(parts: Sequence[Weighed]) -> dict[str, Any]:
    """How rows are written to the model, where all adapters were taught so."""
    told = [part.file.manifest or {} for part in parts]
    encoded, shapes, tasks = (
        [_data_of(each) for each in told],
        [_shape_of(each) for each in told],
        [each.get("task") for each in told],
    )
    return {
        **({"recipe": {"data": encoded[0]}} if encoded[0] and _same(encoded) else {}),
        **({"data": {"shape": shapes[0]}} if shapes[0] and _same(shapes) else {}),
        **({"task": tasks[0]} if tasks[0] and _same(tasks) else {}),
    }


def _same(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def _data_of(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    recipe = manifest.get("recipe")
    made = recipe.get("data") if isinstance(recipe, Mapping) else None
    return (
        {name: value for name, value in made.items() if name not in ("train", "eval")}
        if isinstance(made, Mapping)
        else None
    )


def _shape_of(manifest: Mapping[str, Any]) -> Any:
    made = manifest.get("data")
    return made.get("shape") if isinstance(made, Mapping) else None


def _size(folder: Place) -> int:
    return (Path(folder) / TENSORS).stat().st_size
