"""Generation: the cache, the batch and the seeds change nothing about what a prompt is answered."""

import math

import pytest
import torch
from torch import Tensor, nn

import decoder_family
from decoder_family import KINDS, VOCABULARY, ours, theirs, tokens
from lorica.errors import ModelError, RequestError
from lorica.models import ambient, generate
from lorica.models.ambient import Pass
from lorica.models.causal_lm import CausalLM
from lorica.models.edited import AroundModule
from lorica.models.generate import own_stop_ids
from lorica.models.layout import Layout
from lorica.models.sampling import Sampling, generators_of
from tiny_bases import filled

PROMPTS = [tokens(length, seed=length).tolist() for length in (5, 1, 9)]


def recomputed(model: CausalLM, prompt: list[int], count: int) -> list[int]:
    """Greedy without a cache: everything is read again for every token."""
    document = list(prompt)
    for _ in range(count):
        document.append(int(model(torch.tensor([document])).logits[0, -1].argmax()))
    return document[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_reading_everything_again_for_every_token(kind: str) -> None:
    model = ours(kind, torch.float64)
    found = generate(model, PROMPTS, 12)
    assert found == [recomputed(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(row) for row in found}) == 3


@pytest.mark.parametrize("kind", ["llama", "mistral sliding", "qwen3"])
def test_greedy_equals_transformers_on_the_same_weights(kind: str) -> None:
    found = generate(ours(kind, torch.float64), PROMPTS, 10)
    assert found == generate(theirs(kind, torch.float64), PROMPTS, 10)
    ids, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        ids[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = torch.tensor(prompt), 1
    options = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False}
    wanted = theirs(kind, torch.float64).generate(ids, **options, pad_token_id=0)
    assert torch.equal(ours(kind, torch.float64).generate(ids, **options), wanted)


def test_a_document_ends_with_its_stop_token_and_others_go_on() -> None:
    model = ours("llama", torch.float64)
    free = generate(model, PROMPTS, 12)
    stop = free[0][3]
    found = generate(model, PROMPTS, 12, stop_ids=[stop])
    for row, whole in zip(found, free, strict=True):
        assert row == (whole[: whole.index(stop) + 1] if stop in whole else whole)
    rows = model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=12, eos_token_id=stop)
    assert rows[0].tolist() == PROMPTS[0] + found[0]


def test_the_base_states_its_own_end() -> None:
    model = CausalLM(decoder_family.config("llama"))
    assert own_stop_ids(model) == ()
    model.config.eos_token_id = [3, 4]
    assert own_stop_ids(model) == (3, 4)
    model.config.eos_token_id = 5
    assert own_stop_ids(model) == (5,)


def test_sampled_tokens_depend_on_seed_and_row_and_not_on_company() -> None:
    model = ours("llama", torch.float64)
    options = {"temperature": 0.9, "top_p": 0.95, "top_k": 30}
    together = generate(model, PROMPTS, 12, seed=7, **options)
    assert together == generate(model, PROMPTS, 12, seed=7, **options)
    assert together != generate(model, PROMPTS, 12, seed=8, **options)
    assert together[0] == generate(model, PROMPTS[:1], 12, seed=7, **options)[0]
    twins = generate(model, [PROMPTS[0], PROMPTS[0]], 12, seed=7, **options)
    assert twins[0] == together[0]
    assert twins[1] != twins[0]
    torch.manual_seed(0)
    generate(model, PROMPTS, 3, seed=7, **options)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_sampling_draws_from_the_tempered_distribution_cut_as_asked() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    draws = 4000
    found = torch.tensor(Sampling(temperature=2.0).choose(logits.expand(draws, 5), generators_of(0, draws)))
    share = found.bincount(minlength=5) / draws
    wanted = (logits / 2).softmax(-1)
    assert ((share - wanted).abs() < 5 * (wanted * (1 - wanted) / draws).sqrt()).all()
    for cut, kept in (({"top_k": 2}, {0, 1}), ({"top_p": 0.5}, {0}), ({"top_p": 0.8}, {0, 1}), ({"top_k": 1}, {0})):
        chosen = Sampling(temperature=1.0, **cut).choose(logits.expand(500, 5), generators_of(1, 500))
        assert set(chosen) == kept


def test_the_cut_is_that_of_transformers() -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    for k, p in ((0, 0.7), (10, 1.0), (10, 0.7), (10, 0.05)):
        cut = logits if not k else TopKLogitsWarper(k)(None, logits)
        wanted = (cut if p == 1.0 else TopPLogitsWarper(p)(None, cut)).softmax(-1) > 0
        ordered, ids = logits.sort(-1, descending=True)
        kept = Sampling(temperature=1.0, top_k=k, top_p=p).kept(ordered.softmax(-1)) > 0
        assert torch.equal(torch.zeros_like(wanted).scatter(-1, ids, kept), wanted)


def test_generation_stops_where_the_context_ends() -> None:
    model = ours("llama", torch.float64)
    found = generate(model, [tokens(60).tolist(), tokens(64).tolist()], 99)
    assert [len(row) for row in found] == [5, 1]
    with pytest.raises(ModelError, match="prompt 1: 65 tokens, and the base reads at most 64"):
        generate(model, [[3], [3] * 65], 4)


def test_what_cannot_be_answered_is_refused_all_at_once() -> None:
    model = ours("llama")
    with pytest.raises(RequestError, match=r"prompt 1: empty(.|\n)*max_tokens: -1"):
        generate(model, [[3], []], -1)
    with pytest.raises(RequestError, match=r"temperature(.|\n)*top_p(.|\n)*top_k"):
        generate(model, [[3]], 1, temperature=math.nan, top_p=0.0, top_k=-1)
    with pytest.raises(ModelError, match="num_beams"):
        model.generate(torch.tensor([[3]]), num_beams=4)
    assert generate(model, [], 4) == []
    assert generate(model, [[3], [4]], 0) == [[], []]
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ModelError, match="BertModel does not generate"):
        generate(bert, [[3]], 1)


def test_every_token_is_announced_as_it_is_chosen() -> None:
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}
    found = generate(ours("llama"), PROMPTS, 6, on_token=lambda row, token: heard[row].append(token))
    assert [heard[row] for row in range(3)] == found


def test_every_module_is_in_its_own_mode_again_afterwards() -> None:
    model = CausalLM(decoder_family.config("llama")).eval()
    model.model.layers[1].train()
    modes = [module.training for module in model.modules()]
    generate(model, PROMPTS, 2)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError):
        generate(model, PROMPTS, 2, on_token=lambda row, token: {}[row])
    assert [module.training for module in model.modules()] == modes


class Routed(nn.Module):
    """y = base(x) + x D[route], nothing where the route is -1."""

    def __init__(self, d_out: int, d_in: int) -> None:
        super().__init__()
        self.deltas = nn.Parameter(torch.randn(2, d_in, d_out, dtype=torch.float64) * 0.3)

    def forward(self, x: Tensor, base: nn.Module, flow: Layout) -> Tensor:
        y = base(x)
        if flow.route is None:
            return y
        assert len(flow.route) == len(x)
        added = torch.stack([x @ delta for delta in self.deltas])[flow.route.clamp_min(0), torch.arange(len(x))]
        return y + added * (flow.route >= 0)[:, None]


def test_each_prompt_is_answered_by_the_adapter_its_route_names() -> None:
    model = filled(CausalLM(decoder_family.config("llama"))).double().eval()
    base = generate(model, PROMPTS, 10)
    torch.manual_seed(0)
    for block in model.model.layers:
        block.mlp.down_proj = AroundModule(block.mlp.down_proj, Routed(32, 40))
    model.lm_head = AroundModule(model.lm_head, Routed(VOCABULARY, 32))
    stop = [base[0][4]]

    def routed(prompts: list[list[int]], route: list[int]) -> list[list[int]]:
        with ambient.entered(Pass(route=torch.tensor(route))):
            return generate(model, prompts, 10, stop_ids=stop)

    together = routed([PROMPTS[0]] * 3 + PROMPTS[1:], [0, -1, 1, 1, 0])
    assert together[1] == base[0][: base[0].index(stop[0]) + 1]
    assert len({tuple(row) for row in together[:3]}) == 3
    apart = [routed([p], [r])[0] for p, r in zip([PROMPTS[0]] * 3 + PROMPTS[1:], [0, -1, 1, 1, 0], strict=True)]
    assert together == apart
    assert routed(PROMPTS, [0]) == routed(PROMPTS, [0, 0, 0])
    with pytest.raises(RequestError, match="2 adapters are chosen for 3 rows"):
        routed(PROMPTS, [0, 1])


def test_soft_tokens_are_read_once_and_counted_in_the_cache() -> None:
    model = filled(CausalLM(decoder_family.config("mistral"))).double().eval()
    plain = generate(model, PROMPTS, 10)
    soft = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    model.model.soft_tokens = lambda layout: soft.expand(len(layout.documents), 3, 32)
    found = generate(model, PROMPTS, 10)
    assert found == [recomputed(model, prompt, 10) for prompt in PROMPTS]
    assert found != plain


def test_models_of_transformers_generate_through_their_own() -> None:
    import transformers

    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=61, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    )
    filled(t5).eval()
    found = generate(t5, [*PROMPTS, PROMPTS[0]], 7, stop_ids=[2])
    wanted = t5.generate(input_ids=torch.tensor(PROMPTS[:1]), max_new_tokens=7, eos_token_id=2, pad_token_id=2)
    assert wanted[0, 1 : 1 + len(found[0])].tolist() == found[0]
    assert found[3] == found[0]
    sampled = generate(theirs("llama"), PROMPTS, 9, temperature=1.0, seed=3)
    assert sampled[0] == generate(theirs("llama"), PROMPTS[:1], 9, temperature=1.0, seed=3)[0]
    assert sampled != generate(theirs("llama"), PROMPTS, 9, temperature=1.0, seed=4)
