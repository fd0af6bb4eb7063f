"""What NF4 takes from the embedded base, and what is left of that at the start of LoftQ and of PiSSA's residual.

    python benchmarks/starts_on_four_bits.py [result.json]

lost      |W - W'| / |W| over all linears of the blocks
answers   mean KL divergence of the next token's distribution from the full-precision base's, on 1,024 tokens of this
          project's map
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor, nn

import lorica
from lorica import durable
from lorica.models import weight_of

NF4 = {"quantize": "nf4", "double_quant": True}
RANKS = (4, 16, 64)
TEXT = Path(__file__).parent.parent / "ARCHITECTURE.md"
TOKENS, LENGTH = 1024, 256


@torch.no_grad()
def answers(model: Any, base: Any) -> Tensor:
    """Log-probabilities (tokens, vocabulary)."""
    ids = base.tokenizer(TEXT.read_text(encoding="utf-8"))["input_ids"][:TOKENS]
    return model(torch.tensor(ids).view(-1, LENGTH)).logits.float().log_softmax(-1).flatten(0, 1)


@torch.no_grad()
def lost(attached: lorica.Attached, base: nn.Module) -> float:
    squares = torch.zeros(2)
    for planned in attached.plan.edits:
        W: Any = base.get_submodule(planned.site.name).weight
        now: Any = attached.modules[planned.key]
        Q = weight_of(attached.model, planned.site).dense().float()
        squares += torch.stack([(W.float() - now.merged(Q)).square().sum(), W.float().square().sum()])
    return float((squares[0] / squares[1]).sqrt())


def measured(attached: lorica.Attached, base: nn.Module, before: Tensor) -> dict[str, float]:
    after = answers(attached.model, base)
    divergence = (before.exp() * (before - after)).sum(-1).mean()
    return {"lost": round(lost(attached, base), 5), "answers": round(float(divergence), 5)}


def main(result: Path | None) -> None:
    base = lorica.load_base("embedded", dtype="float32")
    before = answers(base, base)
    four = lorica.load_base("embedded", dtype="float32", **NF4)
    plain = lorica.attach(four, lorica.LoRA(r=4))
    found: dict[str, Any] = {"nf4": measured(plain, base, before), "ranks": {}}
    plain.detach()
    for r in RANKS:
        repaired = lorica.attach(four, lorica.LoRA(r=r, init="loftq"))
        rows = {"loftq": measured(repaired, base, before)}
        repaired.detach()
        with tempfile.TemporaryDirectory() as place:
            made = lorica.residual("embedded", lorica.LoRA(r=r, init="pissa"), place, dtype="float32", **NF4)
            principal = lorica.load(lorica.load_base(made.base, dtype="float32", **NF4), made.adapter)
            rows["residual"] = measured(principal, base, before)
        found["ranks"][str(r)] = rows
    found["machine"] = machine()
    print(json.dumps(found, indent=2))
    if result is not None:
        durable.write_json(result, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
