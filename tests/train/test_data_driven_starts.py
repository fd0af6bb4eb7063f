"""Starts that read the training data: what they see, what they leave, and that a resumed run does not read it again."""

import pytest
import torch
from torch import Tensor, nn

import lorica
from campaign.tiny_run import base, dataset, noisy
from lorica.errors import TargetError
from lorica.kernels import DenseWeight, FrozenWeight
from lorica.methods import LoRA
from lorica.methods.starts import STARTS
from lorica.models.quantised import Quantisation, quantise
from lorica.tasks import TASKS
from tiny_bases import GPT2
from traces import traces

TASK = TASKS["causal_lm"]
ROWS = dataset(12)
BASES = {"decoder": lambda: base(torch.float64), "gpt2": lambda: GPT2.build(torch.float64)}


@pytest.fixture(params=BASES)
def model(request) -> nn.Module:
    """Ours, and one of transformers, which takes padded rows."""
    return BASES[request.param]()


def eva(**options) -> LoRA:
    return LoRA(r=3, alpha=8, target_modules="all-linear", init={"name": "eva", **options})


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {site.name: model.get_submodule(site.name) for site in lorica.plan(model, LoRA()).plan.sites}


def test_eva_takes_the_directions_of_the_inputs_of_all_rows_without_padding(model):
    found = lorica.statistics(model, eva(rho=1), ROWS)
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers(model)}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: inputs[name].append(x[0].flatten(0, -2)))
        for name, module in layers(model).items()
    ]
    with torch.no_grad():
        for row in ROWS:
            TASK.loss(model, TASK.batch([row], device=torch.device("cpu")))
    for hook in hooks:
        hook.remove()
    assert found.keys() == {f"{name}.A" for name in inputs}
    read = {name: sum(map(len, seen)) for name, seen in inputs.items()}
    # The rest of the decoder's last block computes the states alone from which a token is learned.
    assert all(read[name] == sum(ROWS.lengths) for name in read if name.endswith(("q_proj", "c_attn")))
    for name, seen in inputs.items():
        expected = torch.linalg.svd(torch.cat(seen), full_matrices=False)[2][:3]
        overlap = (found[f"{name}.A"] @ expected.T).abs()
        torch.testing.assert_close(overlap, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8)


def test_lora_ga_takes_the_gradient_of_the_training_loss(model):
    """Autograd's own, of all rows at once."""
    method = LoRA(r=8, alpha=20, init="lora_ga")  # 4 r are all the directions of these layers
    found = lorica.statistics(model, method, ROWS)
    model.requires_grad_(True)
    TASK.loss(model, TASK.batch(list(ROWS), device=torch.device("cpu"))).backward()
    for name, module in layers(model).items():
        gradient = DenseWeight(module.weight.grad, FrozenWeight.of(module).transposed).dense()
        U, _, Vt = torch.linalg.svd(gradient, full_matrices=False)
        k = gradient.shape[0] ** 0.25 / 4
        A, B = found[f"{name}.A"] / k, found[f"{name}.B"] / k
        torch.testing.assert_close(A.T @ A, Vt[:8].T @ Vt[:8], rtol=0, atol=1e-8)
        torch.testing.assert_close(B @ B.T, U[:, 8:16] @ U[:, 8:16].T, rtol=0, atol=1e-8)


def test_gradients_summed_in_several_passes_are_the_same(monkeypatch):
    method = LoRA(r=3, alpha=8, init="lora_ga")
    once = lorica.statistics(base(), method, ROWS)
    monkeypatch.setattr("lorica.methods.starts.lora_ga.AT_ONCE", 1)
    again = lorica.statistics(base(), method, ROWS)
    assert once.keys() == again.keys()
    assert all(torch.equal(once[key], again[key]) for key in once)


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_collecting_leaves_the_model_as_it_was_and_gives_the_same_again(init):
    model, method = base().train().requires_grad_(True), LoRA(r=3, alpha=8, init=init)
    before = traces(model)
    found = lorica.statistics(model, method, ROWS)
    assert traces(model) == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    again = lorica.statistics(model, method, ROWS)
    assert all(torch.equal(value, again[key]) for key, value in found.items())


def test_eva_s_ranks_become_the_plan_s_and_their_scale_stays():
    model, method = base(), eva(rho=2.0)
    planned = lorica.plan(model, method)
    assert "deals out the ranks" in str(planned)
    attached = lorica.attach(model, method, statistics=lorica.statistics(model, method, ROWS))
    ranks = {p.site.name: attached.modules[p.key].A.shape[0] for p in attached.plan.edits}
    assert sum(ranks.values()) == 3 * len(ranks)
    assert 3 < max(ranks.values()) <= 6
    assert {attached.modules[p.key].scale for p in attached.plan.edits} == {8 / 3}
    assert attached.trainable_parameters == sum(ranks[p.site.name] * sum(p.site.shape) for p in attached.plan.edits)
    assert "deals out the ranks" not in str(attached.plan)


def test_a_layer_without_a_direction_is_left_alone(tmp_path):
    model, method = base(), eva(rho=2.0)
    statistics = lorica.statistics(model, method, ROWS)
    gone = "model.layers.0.mlp.up_proj"
    attached = noisy(lorica.attach(model, method, statistics={k: v for k, v in statistics.items() if gone not in k}))
    assert gone not in {site.name for site in attached.plan.sites}
    assert len(attached.plan.sites) == 6
    attached.save(tmp_path / "adapter")
    again = lorica.load(base(), tmp_path / "adapter")
    ids = torch.arange(3, 9)[None]
    assert torch.equal(attached(ids).logits, again(ids).logits)


class Spare(nn.Module):
    """A base with a layer that no row reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.used, self.spare = nn.Embedding(61, 8), nn.Linear(8, 61), nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.used(self.table(input_ids))


@pytest.mark.parametrize(
    ("init", "words"), [("eva", "no row reaches it"), ("lora_ga", "the loss does not depend on it")]
)
def test_a_layer_that_no_row_reaches_is_named(init, words):
    with pytest.raises(TargetError, match=f"spare: {words}; leave it out"):
        lorica.statistics(Spare(), LoRA(r=2, init=init), ROWS)


@pytest.mark.parametrize("init", STARTS)
def test_a_plan_needs_shapes_alone(init):
    model = base().to("meta")
    quantise(model, Quantisation(form="nf4"))
    assert lorica.plan(model, LoRA(r=3, init=init)).plan.trainable_parameters == 3 * (4 * 64 - 32 + 3 * 80)


def test_the_forecast_counts_the_frozen_factors():
    """Four bytes each beside the parameter's own four; nothing else of a run grows."""
    plain, moved = (lorica.plan(base(), LoRA(r=3, init=init)).memory.to_dict() for init in ("kaiming", "pissa"))
    assert moved["adapter"] == 2 * plain["adapter"]
    assert {key: moved[key] for key in ("gradients", "optimizer")} == {
        key: plain[key] for key in ("gradients", "optimizer")
    }


def test_a_bank_holds_a_start_that_was_subtracted_beside_copies_and_rows():
    ids = torch.arange(3, 9)[None]
    method = LoRA(r=3, alpha=8, init="olora", modules_to_save=("lm_head",), trainable_token_indices=(5,))
    attached = noisy(lorica.attach(base(), method))
    again = lorica.load(base(), attached.file())
    assert torch.equal(attached(ids).logits, again(ids).logits)
    alone = noisy(lorica.attach(base(), LoRA(r=3, alpha=8, init="olora")))
    bank = lorica.Bank(base())
    bank.add("one", alone)
    with bank.use("one"):
        torch.testing.assert_close(bank.model(ids).logits, alone(ids).logits, rtol=0, atol=1e-4)


def test_what_cannot_start_is_said_before_anything_is_attached():
    model = base()
    with pytest.raises(TargetError, match=r"eva starts from training data; give .*statistics=lorica\.statistics"):
        lorica.attach(model, eva())
    with pytest.raises(TargetError, match="pissa starts linears that are called alone"):
        lorica.attach(model, LoRA(init="pissa", target_modules=("embed_tokens",)))
    with pytest.raises(TargetError, match=r"r: 9 at model.layers.0.self_attn.k_proj.* use 1 to 8"):
        lorica.attach(model, LoRA(r=9, init="lora_ga"))
    strange = lorica.statistics(model, LoRA(r=4, init="lora_ga"), ROWS)
    with pytest.raises(TargetError, match=r"hold \(4, 32\) for A, not \(3, 32\)"):
        lorica.attach(model, LoRA(r=3, init="lora_ga"), statistics=strange)
    assert lorica.statistics(model, LoRA(), ROWS) == {}
    lorica.attach(model, LoRA())
