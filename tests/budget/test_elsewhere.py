"""What a plan says is kept elsewhere: arithmetic in closed form, and as few layers fetched as fit."""

import torch
from transformers import LlamaConfig

from lorica import adapter, budget
from lorica.budget.elsewhere import Elsewhere, elsewhere, moved, on_device
from lorica.budget.memory import Workload, memory_of, two_moments
from lorica.budget.recomputing import fewest_fetched
from lorica.methods import LoRA
from lorica.models import shapes_only, sites
from lorica.models.causal_lm import CausalLM
from lorica.recipe import Recipe

LAYERS, D, F, V, T = 8, 64, 96, 61, 512
LINEARS = 4 * D * D + 3 * D * F


def plan() -> adapter.Plan:
    config = LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return adapter.plan(CausalLM(config).bfloat16(), LoRA(r=4))


def both(work: Workload, kind: str = "cpu") -> tuple[budget.Memory, budget.Memory, Elsewhere]:
    whole = memory_of(plan(), work, kind, decoder=True)
    away = elsewhere(whole, plan(), work, two_moments)
    return whole, moved(whole, away, plan(), work, kind), away


def test_nothing_is_elsewhere_unless_asked_for() -> None:
    whole, left, away = both(Workload(tokens=T, recomputed=None))
    assert whole == left
    assert away == Elsewhere()


def test_state_beyond_the_budget_is_elsewhere() -> None:
    whole, left, away = both(Workload(tokens=T, page_state=20_000))
    assert left.optimizer == 20_000
    assert away.optimizer + left.optimizer == whole.optimizer
    _, left, _ = both(Workload(tokens=T, page_state=1))
    assert left.optimizer == 2 * 4 * 4 * F, "moments of the largest tensor: A of down, or B of gate"
    assert both(Workload(tokens=T, page_state=10**9))[1] == whole


def test_inputs_of_recomputed_blocks_are_elsewhere_but_for_one() -> None:
    whole, left, away = both(Workload(tokens=T, recomputed=None, offloaded=True))
    assert away.activations == (LAYERS - 1) * T * D * 2 == whole.activations - left.activations
    assert left.allocator < whole.allocator
    assert both(Workload(tokens=T, recomputed=3, offloaded=True))[2].activations == 2 * T * D * 2
    assert both(Workload(tokens=T, recomputed=0, offloaded=True))[2].activations == 0


def test_linears_of_fetched_layers_are_elsewhere_and_the_largest_has_room() -> None:
    for layers in (1, 5, LAYERS):
        whole, left, away = both(Workload(tokens=T, host_layers=layers))
        assert away.weights == whole.weights - left.weights == 2 * layers * LINEARS
        assert left.buffers - whole.buffers == 2 * D * F
    whole, left, _ = both(Workload(tokens=T, host_layers=LAYERS), "cuda")
    assert left.weights == 2 * (2 * V * D + 2 * LAYERS * D + D), "embedding, head and norms stay"
    assert left.buffers - whole.buffers == 2 * 2 * D * F, "the next one comes while one is used"


def test_no_fewer_layers_are_fetched_than_memory_demands() -> None:
    work = Workload(tokens=T, recomputed=None)
    peaks = [
        on_device(plan(), Workload(tokens=T, recomputed=None, host_layers=n), "cpu", True, two_moments).peak
        for n in range(LAYERS + 1)
    ]
    for wanted in (0, 2, 7, LAYERS):
        place = budget.machine("cpu", (peaks[wanted] + 1) / 0.95)
        assert fewest_fetched(plan(), work, place, LAYERS, decoder=True, moments=two_moments) == wanted
    tight = budget.machine("cpu", 1e6)
    assert fewest_fetched(plan(), work, tight, LAYERS, decoder=True, moments=two_moments) == LAYERS


def test_a_recipe_fetches_layers_where_recomputing_all_does_not_do() -> None:
    settings = {"model": {"source": "embedded", "host_layers": "auto"}, "method": "lora", "data": "rows.jsonl"}
    layers = len({site.layer for site in sites(shapes_only("embedded")) if site.layer is not None})
    from lorica import api

    recipe = Recipe(**settings)
    assert api.plan(recipe, memory=1e12).work.host_layers == 0
    told = api.plan(recipe, memory=1e6)
    assert (told.work.host_layers, told.work.recomputed) == (layers, None)
    assert told.elsewhere.weights > 0
    assert told.to_dict()["elsewhere_bytes"]["weights"] == told.elsewhere.weights
    assert f"({layers} layers)" in str(told)
