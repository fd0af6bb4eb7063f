"""docs/facts.md: every entry has its claim, fact and source, and the numbers that can be computed are computed."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import lorica
from lorica.methods.contract import Start
from lorica.methods.lora import LoRALinear
from lorica.models.causal_lm import CausalLM
from lorica.site import Site

DOCUMENT = Path(__file__).parents[2] / "docs" / "facts.md"
GB = 1e9


@dataclass(frozen=True)
class Fact:
    title: str
    claim: str
    fact: str
    source: str


def entries() -> list[Fact]:
    """Every entry, its lines joined."""
    found = []
    for part in re.split(r"^### ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        title, _, rest = part.partition("\n")
        rest = re.split(r"^## ", rest, flags=re.MULTILINE)[0]
        bullets = re.findall(r"^- \*\*(\w+)\*\*: (.*?)(?=^- \*\*|\Z)", rest, re.MULTILINE | re.DOTALL)
        assert [name for name, _ in bullets] == ["Claim", "Fact", "Source"], title
        found.append(Fact(title, *(" ".join(text.split()) for _, text in bullets)))
    return found


ENTRIES = entries()
REFERENCE = re.compile(r"arXiv:\d{4}\.\d{5}|doi:|\w+ et al\. \d{4}")
CODE = re.compile(r"`[\w./]+`|test|PEFT|code|README")


def fact(title: str) -> str:
    return next(entry.fact for entry in ENTRIES if entry.title == title)


def holds(title: str, *numbers: str) -> None:
    missing = [number for number in numbers if number not in fact(title)]
    assert not missing, f"{title}: the page does not say {missing}"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_an_entry_quotes_a_claim_states_the_fact_and_names_where_it_is_written(entry: Fact) -> None:
    assert entry.claim.startswith('"')
    assert entry.fact.endswith((".", ")"))
    assert REFERENCE.search(entry.source) or CODE.search(entry.source)
    assert len(entry.fact.split()) < 90, "an entry is read in one breath"


def test_no_entry_twice_and_every_shortened_source_is_given_in_full_before() -> None:
    assert len({entry.title for entry in ENTRIES}) == len(ENTRIES) >= 30
    known: set[str] = set()
    for entry in ENTRIES:
        for name, identity in re.findall(r"(\w+ et al\. \d{4})((?:, [\w+ ]+)*, (?:arXiv|doi):)?", entry.source):
            known |= {name} if identity else set()
            assert name in known, f"{entry.title}: {name} has no number yet"


def llama_2_7b() -> nn.Module:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return CausalLM(config)


def test_the_parameters_of_a_7b_model() -> None:
    model = llama_2_7b()
    plans = {targets: lorica.plan(model, lorica.LoRA(r=8, target_modules=targets)).plan for targets in TARGETS}
    title = "How many parameters"
    for targets, plan in plans.items():
        linears = TARGETS[targets]
        assert plan.trainable_parameters == 32 * sum(8 * (d_in + d_out) for d_in, d_out in linears)
        holds(title, f"{plan.trainable_parameters:,}", f"{plan.trainable_percent:.4f} %")
    holds(title, f"{plans['minimal'].total_parameters:,}")
    assert f"{8 * plans['all-linear'].trainable_parameters:,}" in next(e.source for e in ENTRIES if e.title == title)


SQUARE, WIDE, NARROW = (4096, 4096), (4096, 11008), (11008, 4096)
TARGETS = {"minimal": [SQUARE] * 2, "attention": [SQUARE] * 4, "all-linear": [*[SQUARE] * 4, WIDE, WIDE, NARROW]}


def test_the_parameters_of_gpt_3() -> None:
    """96 layers of width 12,288; q and v."""
    of_rank = {r: 96 * 2 * r * 2 * 12288 for r in (1, 4)}
    fewer = {r: 175e9 / count for r, count in of_rank.items()}
    holds("Ten thousand times fewer", f"{of_rank[4]:,}", f"{round(fewer[4], -2):,.0f} times")
    holds("Ten thousand times fewer", f"{of_rank[1]:,}", f"{round(fewer[1], -3):,.0f} times", "0.0027 %")
    assert f"{100 * of_rank[1] / 175e9:.4f}" == "0.0027"


def started(r: int = 8, d: int = 4096, init: str = "kaiming") -> LoRALinear:
    start = Start(torch.Generator().manual_seed(2), torch.device("cpu"), torch.float32)
    site = Site(name="q", kind="linear", shape=(d, d))
    return LoRALinear(lorica.LoRA(r=r, alpha=32, init=init), site, start)  # type: ignore[arg-type]


def test_how_a_starts_and_what_follows_from_b_at_zero() -> None:
    title = "How A starts"
    reference = nn.Linear(4096, 64, bias=False).weight  # torch starts it with kaiming_uniform_(a=sqrt(5))
    assert float(reference.detach().std()) == pytest.approx((3 * 4096) ** -0.5, rel=0.01)
    for r in (8, 64):
        assert float(started(r).A.detach().std()) == pytest.approx((3 * 4096) ** -0.5, rel=0.02)
    assert float(started(8, init="gaussian").A.detach().std()) == pytest.approx(1 / 8, rel=0.02)
    holds(title, f"{(3 * 4096) ** -0.5:.4f}", f"{1 / 8:.3f}")
    module, base = started(d=64), nn.Linear(64, 64)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    y = module(x, base.requires_grad_(False), NoFlow())
    assert torch.equal(y, base(x))
    y.square().sum().backward()
    assert module.A.grad is not None
    assert module.B.grad is not None
    assert not module.A.grad.any()
    assert module.B.grad.any()


class NoFlow:
    noise = None


def test_the_shapes_compose_one_way_and_not_the_other() -> None:
    d, r = 6, 2
    A, B = torch.randn(d, r), torch.randn(r, d)
    assert (B @ A).shape == (r, r)
    module = started(r, 64)
    assert (module.B @ module.A).shape == (64, 64)


def test_the_scale_stands_in_the_forward_pass_and_in_the_merge() -> None:
    module, base = started(d=64), nn.Linear(64, 64, bias=False).requires_grad_(False)
    with torch.no_grad():
        module.B.normal_(generator=torch.Generator().manual_seed(4))
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
        y = module(x, base, NoFlow())
        assert module.scale == 32 / 8
        expected = x @ base.weight.T + 4 * (x @ module.A.T) @ module.B.T
        tolerance = 1e-5 * float(expected.abs().max())
        assert torch.allclose(y, expected, atol=tolerance)
        assert torch.allclose(x @ module.merged(base.weight).T, expected, atol=tolerance)


def test_the_scales_that_papers_used() -> None:
    assert (16 / 64, 32 / 4) == (0.25, 8)
    holds("Which alpha", "0.25 (QLoRA, 16 / 64)", "8 (GPT-2, 32 / 4)")


def test_four_bits_with_their_constants() -> None:
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    holds("An order of magnitude", f"{bits:.3f}", f"{16 / bits:.1f} times", "780 to 48 GB")
    assert round(780 / 48) == 16
    linears = 80 * (4 * 8192**2 + 3 * 8192 * 22016)
    holds("A 65B model on a 24 GB card", f"{linears * bits / 8 / GB:.1f} GB")
    assert linears * bits / 8 > 24 * GB


def test_sixteen_bytes_a_parameter() -> None:
    each = 2 + 2 + 4 + 4 + 4
    holds("Full fine-tuning on 8 GB", f"{each} bytes", f"{each * 7:.0f} GB", f"{each * 0.35:.1f} GB")


def test_two_thirds_of_the_arithmetic() -> None:
    """A product of (1, N) and (N, N) is N^2 multiply-adds; there are three: forward, by input, by weight."""
    N, r = 4096, 8
    share = (2 * N**2 + 6 * N * r) / (3 * N**2)
    assert share == pytest.approx(2 / 3, abs=0.01)
    holds("Faster training", "Two thirds", "2 N^2 + 6 N r", "3 N^2")


def test_transformers_cosine_ends_at_zero_and_ours_where_it_is_told() -> None:
    from transformers import get_cosine_schedule_with_warmup

    from lorica.train import TrainConfig
    from lorica.train.schedule import learning_rate

    parameter = nn.Parameter(torch.zeros(1))
    theirs = get_cosine_schedule_with_warmup(torch.optim.SGD([parameter], lr=2e-4), 100, 1000)
    assert theirs.lr_lambdas[0](1000) == 0
    ours = learning_rate(TrainConfig(learning_rate=2e-4, warmup=100, min_lr_ratio=0.1), 1000, 1000)
    assert ours == pytest.approx(2e-5, rel=1e-6)


def test_two_e_minus_four_with_ratio_sixteen() -> None:
    holds("LoRA+", f"{2e-4 * 16 * 1e3:.1f}e-3")


def test_bloom_has_one_fused_projection() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    with torch.device("meta"):
        model = BloomForCausalLM(BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=100))
    with pytest.raises(lorica.TargetError, match="query_key_value"):
        lorica.plan(model, lorica.LoRA(target_modules=["q_proj", "v_proj"]))
    plan = lorica.plan(model, lorica.LoRA(target_modules="minimal")).plan
    assert {site.leaf for site in plan.sites} == {"query_key_value"}
    assert plan.beyond == ("k",)
    assert "k" in str(plan).splitlines()[-1]
