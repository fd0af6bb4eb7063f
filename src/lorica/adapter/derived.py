"""Adapters that are made from others rather than trained: products by site become a LoRA as PEFT reads it.

alpha = r at every site, so s = 1: a reader that knows r and alpha alone, and no ranks by site, computes the same.

Without a base the folder says of it what the adapters said that were made on it, and that no outputs were recorded.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorica.adapter.file import AdapterFile, write
from lorica.adapter.load import load, plan_on
from lorica.adapter.manifest import Ground
from lorica.adapter.peft_format import config_without_base
from lorica.adapter.plan import Plan, PlannedEdit, plan
from lorica.adapter.proof import Unprobed
from lorica.adapter.rebuilt import untold
from lorica.adapter.resized import settled
from lorica.adapter.spectra import Product
from lorica.errors import AdapterError
from lorica.kernels import LowRank
from lorica.methods import LoRA
from lorica.methods.contract import Start
from lorica.methods.peft_config import HEADS
from lorica.methods.targets import ends
from lorica.site import Site

Products = Sequence[tuple[Site, Product]]


def derived(products: Products, parents: Sequence[AdapterFile]) -> AdapterFile:
    """The adapter of these products in memory; of its base it says what the first parent does that says anything.

    Of the weights of experts the last is the one called down, as wherever a file is read without its base.
    """
    products = sorted(products, key=lambda held: held[0].kind == "experts" and "down" in held[0].leaf)
    planned = plan([site for site, _ in products], _lora(products), trained=True)
    held = {site.name: product for site, product in products}
    tensors: dict[str, Tensor] = {}
    for edit in planned.edits:
        tensors |= _filled(edit, held[edit.site.name])
    return AdapterFile(
        where=" + ".join(parent.where for parent in parents),
        config=_config(planned, parents),
        methods=planned.methods,
        tensors=tensors,
        manifest=_of_base(parents),
        plan=planned,
    )


def _lora(products: Products) -> LoRA:
    ranks = {site.name: product.rank for site, product in products}
    (r, _), *_ = Counter(ranks.values()).most_common()
    own = _told_apart(ranks, r)
    alphas = {name: float(rank) for name, rank in own.items()}
    return LoRA(r=r, alpha=r, dropout=0.0, target_modules=tuple(ranks), rank_pattern=own, alpha_pattern=alphas)


def _told_apart(ranks: Mapping[str, int], usual: int) -> dict[str, int]:
    """The ranks that are not the usual one.  Where a whole name is the end of another, all of them, longer names first:
    the first entry that fits a name counts."""
    nested = any(end in ranks for name in ranks for end in list(ends(name))[1:])
    unusual = {name: rank for name, rank in ranks.items() if nested or rank != usual}
    return {name: unusual[name] for name in sorted(unusual, key=len, reverse=True)}


@torch.no_grad()
def _filled(planned: PlannedEdit, product: Product) -> dict[str, Tensor]:
    """The file's tensors of one edit: its module's factors are views of its parameters."""
    start = Start(torch.Generator(), torch.device("cpu"), torch.float32)
    module = planned.edit.build(start)
    factors: LowRank = module.factors()  # type: ignore[operator]
    assert factors.scale == 1
    factors.A.copy_(product.A)
    factors.B.copy_(product.B)
    return {key: tensor.of(module).detach() for key, tensor in planned.tensors.items()}


def _config(planned: Plan, parents: Sequence[AdapterFile]) -> dict[str, Any]:
    """`task_type` where all agree, and PEFT looks for no head; convolutions that PEFT cannot read may have groups."""
    tasks = {str(parent.config.get("task_type") or "") for parent in parents}
    task = min(tasks) or None
    convolved = any(planned.site.kind == "conv" for planned in planned.edits)
    return config_without_base(
        planned,
        peft=not convolved or all(parent.peft for parent in parents),
        base=next((parent.base for parent in parents if parent.base), None),
        task=task if len(tasks) == 1 and task not in HEADS else None,
        transposed=any(parent.config.get("fan_in_fan_out") is True for parent in parents),
    )


def _of_base(parents: Sequence[AdapterFile]) -> dict[str, Any]:
    """What lorica.json of the parents says of the base; how it was quantised where all say the same."""
    told = [parent.manifest for parent in parents if parent.manifest is not None]
    first = next((each for each in told if isinstance(each.get("base"), Mapping)), {})
    base = dict(first.get("base") or {})
    if any((each.get("base") or {}).get("load") != base.get("load") for each in told):
        base.pop("load", None)
    words = {str(each.get("tokenizer")): each.get("tokenizer") for each in told}
    tokenizer = next(iter(words.values())) if len(words) == 1 else None
    return {"base": base, "tokenizer": tokenizer, "added_tokens": first.get("added_tokens")}


def saved(
    file: AdapterFile,
    folder: str | Path,
    base: nn.Module | str,
    facts: Mapping[str, Any],
    parents: Sequence[AdapterFile] = (),
    *,
    other_base: bool = False,
) -> str | None:
    """Writes the folder, whole or not at all, and says why it has no proof; None where it has one.

    base    on which the adapter and its parents are checked, and the adapter is proven, or why none is at hand:
            AdapterError then for parents that bring matrices of the base, which nothing tells from its own
    """
    if isinstance(base, str):
        _refuse_brought(parents)
        ground = Ground.recorded(file.manifest or {})
        ground = ground if ground.base else replace(ground, base={"source": file.base})
        write(folder, file, ground, lambda digest: facts, lambda digest: Unprobed(base))
        return base
    for parent in parents:
        plan_on(base, settled(base, parent))
    attached = load(base, file, other_base=other_base).eval()
    try:
        attached.save(folder, **facts)
        record = attached.proof()
        return record.reason if isinstance(record, Unprobed) else None
    finally:
        attached.detach()


def _refuse_brought(parents: Sequence[AdapterFile]) -> None:
    """PEFT writes embeddings and heads whole, beside an adapter on them or where the vocabulary was resized, trained or
    not."""
    problems = [
        f"{parent.where}: {key}: brings a matrix of its base; name the base with --model, to see that it is its own"
        for parent in parents
        for key in untold(parent)
    ]
    if problems:
        raise AdapterError.of(problems)
