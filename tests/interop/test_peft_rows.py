"""Sixteen rows over eight adapters of PEFT's own making and the base, in one pass: each as PEFT computes it, as merged
weights do, and to the bit as it would be alone."""

import importlib
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import peft
import pytest
import torch
import transformers as hf
from peft_bases import BASES, add_noise, only_their_own_warnings

from lorica import adapter
from lorica.errors import AdapterError
from lorica.models import load_base
from lorica.models.layout import Layout
from lorica.models.paged import KVBlocks, Paged

rows = importlib.import_module("lorica.kernels.rowwise")
LLAMA = next(base for base in BASES if base.name == "llama")
QKV = ["q_proj", "k_proj", "v_proj"]
ADAPTERS = {
    "lora": peft.LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", task_type="CAUSAL_LM"),
    "wide": peft.LoraConfig(r=16, lora_alpha=5, target_modules=QKV, task_type="CAUSAL_LM"),
    "mixed ranks": LLAMA.peft_config(),
    "rslora": peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["up_proj", "o_proj"]),
    "dora": peft.LoraConfig(r=2, lora_alpha=9, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
    "vera": peft.VeraConfig(r=8, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "loha": peft.LoHaConfig(r=3, alpha=5, target_modules=["gate_proj", "q_proj"], task_type="CAUSAL_LM"),
}
ROWS = [None, *ADAPTERS, "dora", "lora", None, "ia3", "vera", "wide", "loha"]
LENGTHS = [3 + 5 * row % 21 for row in range(len(ROWS))]


def documents():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(61, (n,), generator=generator) for n in LENGTHS]


@cache
def folder() -> Path:
    """The base and every adapter, as transformers and PEFT save them."""
    place = Path(_HELD.name)
    LLAMA.saved(place / "base")
    for name, config in ADAPTERS.items():
        with only_their_own_warnings():
            model = peft.get_peft_model(hf.LlamaForCausalLM.from_pretrained(place / "base").eval(), config).eval()
            add_noise([p for p in model.parameters() if p.requires_grad])
            model.save_pretrained(place / name)
    return place


_HELD = TemporaryDirectory()


@cache
def expected(how: str) -> list[torch.Tensor]:
    """Logits after the last token of each row: by PEFT's own forward, or by merged weights."""
    found = []
    for choice, document in zip(ROWS, documents(), strict=True):
        with only_their_own_warnings(), torch.no_grad():
            model = hf.LlamaForCausalLM.from_pretrained(folder() / "base").eval()
            if choice is not None and how == "peft":
                model = peft.PeftModel.from_pretrained(model, folder() / choice).eval()
            if choice is not None and how == "merged":
                model = adapter.load(load_base(folder() / "base"), folder() / choice).merge(probed=False)
            found.append(model(document[None]).logits[0, -1])
    return found


@cache
def bank(dtype: torch.dtype) -> adapter.Bank:
    held = adapter.Bank(load_base(folder() / "base", dtype=str(dtype).removeprefix("torch.")).eval())
    for name in ADAPTERS:
        held.add(name, folder() / name)
    return held


def logits_of(rows: list[int], dtype: torch.dtype, choices=ROWS) -> list[torch.Tensor]:
    """After the last token of these documents, read in one pass, then one more token each in the next."""
    held, every = bank(dtype), documents()
    blocks = KVBlocks(held.model.shape, 2 * len(rows), held.model.dtype)
    tables = tuple((2 * place, 2 * place + 1) for place in range(len(rows)))
    numbers, done, out = [held.number(choices[row]) for row in rows], [0] * len(rows), None
    for counts in ([len(every[row]) - 1 for row in rows], [1] * len(rows)):
        layout = Layout.of(counts, cache=Paged(blocks, tables, list(done)))
        layout = replace(layout, route=torch.tensor(numbers)[layout.document_of])
        flat = torch.cat([every[row][d : d + n] for row, d, n in zip(rows, done, counts, strict=True)])
        with torch.inference_mode():
            out = held.model.logits(held.model.hidden(flat, layout, layout.last), layout.at(layout.last))
        done = [d + n for d, n in zip(done, counts, strict=True)]
    assert out is not None
    return list(out)


@pytest.mark.parametrize("how", ["peft", "merged"])
def test_each_row_of_a_mixed_batch_is_what_its_adapter_computes(how: str) -> None:
    found = logits_of(list(range(len(ROWS))), torch.float32)
    base = expected("peft")[0]
    for row, (one, wanted) in enumerate(zip(found, expected(how), strict=True)):
        # float32 through two blocks whose products are of 48 terms at most
        bound = 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
        assert float((one - wanted).abs().max()) <= bound, ROWS[row]
    assert float((expected(how)[1] - base).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_hundred_companies_change_no_bit_of_a_row(dtype: torch.dtype) -> None:
    draw = random.Random(11)
    alone = [logits_of([row], dtype)[0] for row in range(len(ROWS))]
    for _ in range(200):
        rows = draw.sample(range(len(ROWS)), draw.randint(2, len(ROWS)))
        found = logits_of(rows, dtype)
        assert all(torch.equal(one, alone[row]) for row, one in zip(rows, found, strict=True))


def test_products_of_all_rows_at_once_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library gives for sixteen rows and for one are not the same bits."""
    monkeypatch.setattr(rows, "in_slabs", lambda function, x: function(x))
    alone = [logits_of([row], torch.float32)[0] for row in range(len(ROWS))]
    found = logits_of(list(range(len(ROWS))), torch.float32)
    assert not all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))


def test_a_blend_in_company_is_the_weighted_sum_of_deltas() -> None:
    blend = {"lora": 0.7, "dora": 0.3, "ia3": 0.5}
    choices = [blend, "lora", blend, None]
    found = logits_of([0, 1, 2, 3], torch.float32, choices)
    held, every = bank(torch.float32), documents()
    for row in (0, 2):
        with held.use(blend) as model, torch.no_grad():
            wanted = model(every[row][None]).logits[0, -1]
        bound = 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
        assert float((found[row] - wanted).abs().max()) <= bound


def test_company_changes_no_bit_of_a_blend() -> None:
    blends = [{"lora": 0.7, "dora": 0.3, "ia3": 0.5, "loha": 0.2}, {"loha": 0.4, "ia3": 0.2, "dora": 0.1, "lora": 0.9}]
    alone = [logits_of([row], torch.float32, blends)[0] for row in (0, 1)]
    for rows_read in ([0, 1], [1, 0]):
        found = logits_of(rows_read, torch.float32, blends)
        assert all(torch.equal(one, alone[row]) for row, one in zip(rows_read, found, strict=True))


def test_a_row_that_is_given_its_neighbours_adapter_is_caught() -> None:
    wrong = [ROWS[1], ROWS[0], *ROWS[2:]]
    found = logits_of(list(range(len(ROWS))), torch.float32, wrong)
    for row in (0, 1):
        assert float((found[row] - expected("peft")[row]).abs().max()) > 1e-3


def test_a_route_whose_adapter_is_gone_is_refused_and_never_the_base() -> None:
    held = adapter.Bank(load_base(folder() / "base", dtype="float32").eval())
    held.add("gone", folder() / "lora")
    number = held.number("gone")
    held.remove("gone")
    held.add("gone", folder() / "wide")
    blocks = KVBlocks(held.model.shape, 1, held.model.dtype)
    layout = replace(Layout.of([1], cache=Paged(blocks, ((0,),), [0])), route=torch.tensor([number]))
    with pytest.raises(AdapterError, match="removed"):
        held.model.hidden(torch.tensor([3]), layout, layout.last)
