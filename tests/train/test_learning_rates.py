"""Which tensor learns at which rate: LoRA+ by roles, factors by names, in our trainer, in one's own loop and in
transformers' Trainer."""

import json

import pytest
import torch

from campaign.tiny_run import base, dataset, lora
from lorica.adapter import attach
from lorica.errors import TargetError
from lorica.methods import IA3, AdaLoRA, Full, LoKr, LoRA, LoRAFA, MultiLoRA, VeRA
from lorica.tasks import TASKS
from lorica.train import TrainConfig, fit, outlook

EVERYTHING = LoRA(
    r=2,
    alpha=6,
    target_modules=["q_proj", "v_proj", "embed_tokens"],
    bias="all",
    modules_to_save=["lm_head", "model.norm"],
)


def rates_of(attached, rate, **options):
    """Rate and decay of each tensor by its key."""
    keys = {id(parameter): key for key, parameter in attached.named_parameters()}
    groups = attached.parameter_groups(rate, weight_decay=0.01, **options)
    torch.optim.AdamW(groups, lr=9.0)
    found = {keys[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == set(keys.values())
    return {key.removeprefix("base_model.model."): value for key, value in found.items()}


def test_without_a_ratio_all_learn_at_one_rate_and_vectors_do_not_decay():
    found = rates_of(attach(base(), EVERYTHING), 1e-3)
    assert {rate for rate, _ in found.values()} == {1e-3}
    assert {key for key, (_, decay) in found.items() if not decay} == {key for key in found if "norm" in key}


def test_a_vector_with_two_dimensions_does_not_decay():
    """Decay is towards zero: (IA)^3 starts at gains of one."""
    assert {decay for _, decay in rates_of(attach(base(), IA3()), 1e-3).values()} == {0.0}
    found = rates_of(attach(base(), AdaLoRA(r=2)), 1e-3)
    assert {key for key, (_, decay) in found.items() if not decay} == {key for key in found if key.endswith("lora_E")}
    found = rates_of(attach(base(), MultiLoRA(n=2, r=2)), 1e-3)
    assert {key for key, (_, decay) in found.items() if not decay} == {key for key in found if key.endswith("lora_c")}


def test_lora_plus_has_the_groups_of_its_authors():
    found = rates_of(attach(base(), EVERYTHING), 1e-3, lora_plus_ratio=16.0)
    attention = "model.layers.0.self_attn"
    assert found[f"{attention}.q_proj.lora_A.weight"] == (1e-3, 0.01)
    assert found[f"{attention}.q_proj.lora_B.weight"] == (1.6e-2, 0.01)
    assert found["model.norm.weight"] == (1.6e-2, 0.0)
    assert found["lm_head.weight"] == (1e-3, 0.01)
    assert found["model.embed_tokens.lora_embedding_A"] == found["model.embed_tokens.lora_embedding_B"]
    assert found["model.embed_tokens.lora_embedding_A"] == (pytest.approx(1e-6), 0.01)
    given = rates_of(attach(base(), EVERYTHING), 1e-3, lora_plus_ratio=16.0, lr_embedding=5e-5)
    assert given["model.embed_tokens.lora_embedding_B"] == (pytest.approx(5e-5), 0.01)


def test_under_lora_plus_what_a_tensor_sums_over_gives_its_rate_wherever_it_started():
    """MultiLoRA's A sums over d_in, its B over r and its gains over nothing; its B does not start at zero."""
    found = rates_of(attach(base(), MultiLoRA(n=2, r=2, target_modules=["q_proj"])), 1e-3, lora_plus_ratio=8.0)
    assert {key.rpartition("_")[2]: rate for key, (rate, _) in found.items()} == {"A": 1e-3, "B": 8e-3, "c": 8e-3}


def test_muon_takes_no_gain_for_a_matrix():
    plan = attach(base(), MultiLoRA(n=2, r=2, target_modules=["q_proj"])).plan
    (optimiser,) = outlook.remarks(TrainConfig(optimizer="muon", learning_rate=1e-4), plan)
    assert optimiser == "optimizer: muon for 2 matrices of hidden layers, adamw for the other 1 tensors"


def test_factors_by_name_multiply_and_the_first_glob_counts():
    factors = {"lm_head*": 10.0, "*.q_proj.B": 0.5, "*.q_proj.*": 3.0}
    found = rates_of(attach(base(), EVERYTHING), 1e-3, lora_plus_ratio=4.0, learning_rates=factors)
    attention = "model.layers.0.self_attn"
    assert found["lm_head.weight"][0] == pytest.approx(1e-2)
    assert found[f"{attention}.q_proj.lora_B.weight"][0] == pytest.approx(2e-3)
    assert found[f"{attention}.q_proj.lora_A.weight"][0] == pytest.approx(3e-3)
    assert found[f"{attention}.v_proj.lora_B.weight"][0] == pytest.approx(4e-3)


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        (Full(), {"lora_plus_ratio": 4.0}, "lora_plus_ratio: nothing trained here is the B"),
        (VeRA(), {"lora_plus_ratio": 4.0}, "lora_plus_ratio: nothing trained here is the B"),
        (LoKr(r=1, decompose_both=True), {"lora_plus_ratio": 4.0}, "lora_plus_ratio: nothing trained here is the B"),
        (LoRAFA(r=2), {"learning_rates": {"*.q_proj.A": 2.0}}, r"'\*.q_proj.A' matches no trained tensor"),
        (
            LoRA(r=2),
            {"learning_rates": {"*.k_prog.A": 2.0}},
            r"'\*.k_prog.A' matches no .*did you mean 'k_proj.A'",
        ),
    ],
)
def test_what_applies_to_nothing_is_refused(method, options, told):
    attached = attach(base(), method)
    with pytest.raises(TargetError, match=told):
        attached.parameter_groups(1e-3, **options)
    config = TrainConfig(steps=1, **options)
    with pytest.raises(TargetError, match=told):
        list(outlook.remarks(config, attached.plan))
    with pytest.raises(TargetError, match=told):
        fit(attached, TASKS["causal_lm"], dataset(4), None, config)


def test_a_run_logs_and_uses_the_rate_of_each_group(tmp_path):
    """Adam's first update moves an element by its rate, whatever its gradient; of A it is zero while B is zero."""
    attached = attach(base(), LoRA(r=2, alpha=6, bias="all", modules_to_save=["model.norm"]))
    start = {key: tensor.clone() for key, tensor in attached.state().items()}
    config = TrainConfig(steps=1, warmup=0, learning_rate=1e-3, lora_plus_ratio=8, learning_rates={"*.o_proj.B": 0.5})
    fit(attached, TASKS["causal_lm"], dataset(4), None, config, folder=tmp_path / "run")
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["learning_rate"] == 1e-3
    assert line["learning_rates"] == {"A": 1e-3, "B, vector": 8e-3, "B of *.o_proj.B": 4e-3}
    moved = {key: float((tensor - start[key]).abs().median()) for key, tensor in attached.state().items()}
    block = "base_model.model.model.layers.0"
    assert moved[f"{block}.self_attn.q_proj.lora_B.weight"] == pytest.approx(8e-3, rel=1e-3)
    assert moved[f"{block}.self_attn.o_proj.lora_B.weight"] == pytest.approx(4e-3, rel=1e-3)
    assert moved["base_model.model.model.norm.weight"] == pytest.approx(8e-3, rel=1e-3)


def test_the_plan_tells_rates_and_who_learns_under_muon():
    plan = attach(base(), EVERYTHING).plan
    config = TrainConfig(optimizer="muon", learning_rate=1e-4, lora_plus_ratio=4)
    optimiser, rates = outlook.remarks(config, plan)
    assert optimiser == "optimizer: muon for 4 matrices of hidden layers, adamw for the other 4 tensors"
    rates_told = "A, table 1e-4 (3 tensors), B, vector 4e-4 (3 tensors), embedding 1e-6 (2 tensors)"
    assert rates == f"learning rates at their peak: {rates_told}"
    assert list(outlook.remarks(TrainConfig(), plan)) == []


@pytest.mark.parametrize(
    ("settings", "rows", "steps"),
    [
        ({"steps": 20}, None, 20),
        ({"epochs": 2, "rows_per_step": 8}, 80, 20),
        ({"epochs": 1, "rows_per_step": 8}, 101, 13),
    ],
)
def test_a_plan_warns_of_a_warm_up_that_the_run_does_not_outlast(settings, rows, steps):
    plan = attach(base(), lora()).plan
    (told,) = outlook.remarks(TrainConfig(warmup=steps, **settings), plan, rows)
    assert f"{steps} steps in a run of {steps}:" in told
    assert list(outlook.remarks(TrainConfig(warmup=steps - 1, **settings), plan, rows)) == []
    assert list(outlook.remarks(TrainConfig(epochs=1, warmup=steps), plan)) == [], "nobody knows how many rows"


def test_transformers_trainer_takes_the_groups(tmp_path):
    import transformers as hf

    import lorica

    config = hf.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    attached = attach(hf.LlamaForCausalLM(config), LoRA(r=2, alpha=6, target_modules="minimal"))
    start = {key: tensor.clone() for key, tensor in attached.state().items()}
    optimizer = torch.optim.AdamW(attached.parameter_groups(1e-3, lora_plus_ratio=8.0))
    rows = [{"input_ids": [3, 4, 5, 6 + row], "labels": [3, 4, 5, 6 + row]} for row in range(4)]
    args = hf.TrainingArguments(
        str(tmp_path), max_steps=1, warmup_steps=0, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    lorica.Trainer(attached, args, train_dataset=rows, optimizers=(optimizer, None)).train()
    moved = {key: float((tensor - start[key]).abs().median()) for key, tensor in attached.state().items()}
    assert {round(value, 5) for key, value in moved.items() if "lora_B" in key} == {8e-3}
