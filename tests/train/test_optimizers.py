"""Every optimiser is that of its paper, keeps its state by name, resumes to the bit, and leaves alone what has no
gradient."""

import pytest
import torch
from torch import nn

from campaign.tiny_run import base, dataset
from lorica.adapter import attach
from lorica.errors import CheckpointError
from lorica.methods import IA3, AdaLoRA, Full, LoRA
from lorica.tasks import TASKS
from lorica.train import TrainConfig, fit
from lorica.train.loop import FREE_TO_CHANGE
from lorica.train.optimizers import OPTIMIZERS, optimizer
from lorica.train.optimizers.muon import orthogonalised
from oracles import optimizers as oracle

STEPS = 7
SHAPES = {"matrix": (5, 3), "wide": (2, 7), "vector": (4,), "cube": (2, 3, 2), "idle": (2, 2)}
ROUNDING = 1e-12
"""Of double precision, after some hundred operations on values near one."""
CONFIGS = {
    "adamw": {"weight_decay": 0.1},
    "adafactor": {"weight_decay": 0.1},
    "adafactor-relative": {"name": "adafactor", "relative_step": True},
    "lion": {"weight_decay": 0.1},
    "muon": {"weight_decay": 0.1},
    "muon-original": {"name": "muon", "adjust": "original", "nesterov": False},
    "sgd": {"weight_decay": 0.1},
    "sgd-plain": {"name": "sgd", "momentum": 0.0},
    "sgd-nesterov": {"name": "sgd", "nesterov": True},
}


def config_of(which):
    entry = {"name": which, **CONFIGS[which]}
    return OPTIMIZERS[entry["name"]][0](**entry)


class Parameters(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)))


def gradient(parameter, step, size=1.0):
    generator = torch.Generator().manual_seed(1000 * step + parameter.numel())
    return size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)


def learn(module, stepper, steps, first=0):
    """Gradients of changing size, so that clipped and unclipped updates both occur."""
    for step in range(first, first + steps):
        for name, parameter in module.named_parameters():
            parameter.grad = None if name == "idle" else gradient(parameter, step, 3.0 if step % 3 else 0.1)
        stepper(0.1 / (1 + step))


def made(which, module, **options):
    return optimizer(config_of(which), dict(module.named_parameters()), **options)


def gradients_of(name, steps=STEPS):
    shape = Parameters().get_parameter(name)
    return [gradient(shape, step).tolist() for step in range(steps)]


def learned(which, name, rate=0.1, **entries):
    """The named parameter after STEPS at one rate, learning alone."""
    module = Parameters()
    parameter = module.get_parameter(name)
    own = optimizer(config_of(which).model_copy(update=entries), {name: parameter})
    for step in range(STEPS):
        parameter.grad = gradient(parameter, step)
        own.step(rate)
    return parameter.detach()


def near(found, expected, bound=ROUNDING):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["matrix", "wide"])
def test_lion_is_algorithm_2(name):
    X = Parameters().get_parameter(name).tolist()
    expected = oracle.lion(X, gradients_of(name), 0.1, 0.9, 0.99, 0.1)
    near(learned("lion", name), expected)


@pytest.mark.parametrize("which", ["adafactor", "adafactor-relative"])
@pytest.mark.parametrize("clip", [1.0, 0.5, 100.0])
def test_adafactor_is_algorithm_4_and_5_of_vectors(which, clip):
    relative = which == "adafactor-relative"
    for name in ("matrix", "wide"):
        X = Parameters().get_parameter(name).tolist()
        expected = oracle.adafactor(X, gradients_of(name), 0.1, relative, clip)
        near(learned(which, name, update_clip=clip, weight_decay=0.0), expected)
    x = Parameters().vector.tolist()
    expected = oracle.adafactor_vector(x, gradients_of("vector"), 0.1, relative, clip)
    near(learned(which, "vector", update_clip=clip, weight_decay=0.0), expected)


def test_a_clipped_update_is_another_one():
    clipped, free = (learned("adafactor", "matrix", update_clip=clip) for clip in (0.5, 100.0))
    assert (clipped - free).abs().max() > 0.01


def peers(module):
    """torch's own, with the decay on matrices alone, as here."""
    matrices = [module.matrix, module.wide, module.cube]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": [module.vector], "weight_decay": 0.0}]
    flat = [module.matrix, module.wide]
    rest = [{"params": [module.cube], "weight_decay": 0.1}, {"params": [module.vector], "weight_decay": 0.0}]
    plain = [{"params": [*matrices, module.vector]}]
    return {
        "adamw": lambda: [torch.optim.AdamW(groups)],
        "sgd": lambda: [torch.optim.SGD(groups, lr=1.0, momentum=0.9)],
        "sgd-plain": lambda: [torch.optim.SGD(plain, lr=1.0)],
        "sgd-nesterov": lambda: [torch.optim.SGD(plain, lr=1.0, momentum=0.9, nesterov=True)],
        "muon": lambda: [
            torch.optim.Muon(flat, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest),
        ],
        "muon-original": lambda: [
            torch.optim.Muon(flat, weight_decay=0.0, nesterov=False),
            torch.optim.AdamW([module.cube, module.vector], weight_decay=0.0),
        ],
    }


@pytest.mark.parametrize("which", ["adamw", "sgd", "sgd-plain", "sgd-nesterov", "muon", "muon-original"])
def test_it_steps_as_torchs_own_does(which):
    ours, theirs = Parameters(), Parameters()
    learn(ours, made(which, ours).step, STEPS)
    references = peers(theirs)[which]()

    def step(rate):
        for reference in references:
            for group in reference.param_groups:
                group["lr"] = rate
            reference.step()

    learn(theirs, step, STEPS)
    torch.testing.assert_close(
        dict(ours.named_parameters()), dict(theirs.named_parameters()), rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3)])
def test_muons_iteration_is_newton_schulz_within_bfloat16(shape):
    """Five rounds of three products, each rounded to 8 bits: some 15 roundings of 2^-9 of values up to 1.2."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = orthogonalised(matrix, 5).double()
    near(found, oracle.newton_schulz(matrix.tolist()), 15 * 2.0**-8)
    singular = torch.linalg.svdvals(found)
    assert singular.max() < 1.3
    assert singular.min() > 0.3


def test_muon_leaves_a_matrix_without_slope_where_it_is():
    assert not orthogonalised(torch.zeros(3, 5), 5).any()


@pytest.mark.parametrize("which", CONFIGS)
def test_what_has_no_gradient_is_left_alone_and_all_else_moves(which):
    module = Parameters()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    own = made(which, module)
    idle = {key: value.clone() for key, value in own.state().items() if key.startswith("idle.")}
    learn(module, own.step, 2)
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before) - {"idle"}
    assert all(torch.equal(value, own.state()[key]) for key, value in idle.items())


@pytest.mark.parametrize("which", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_is_loaded_goes_on_to_the_same_bits(which, dtype):
    """Also when the parameters come in another order."""
    whole, part = Parameters(dtype), Parameters(dtype)
    learn(whole, made(which, whole).step, 2 * STEPS)
    first = made(which, part)
    learn(part, first.step, STEPS)
    saved = {key: value.clone() for key, value in first.state().items()}
    again = optimizer(config_of(which), dict(reversed(list(part.named_parameters()))))
    again.load_state(saved)
    learn(part, again.step, STEPS, first=STEPS)
    assert all(torch.equal(value, part.get_parameter(name)) for name, value in whole.named_parameters())


@pytest.mark.parametrize("which", [which for which in CONFIGS if which != "sgd-plain"])
def test_a_state_of_other_names_or_shapes_is_refused(which):
    module = Parameters()
    own = made(which, module)
    renamed = {key.replace("matrix", "other"): value for key, value in own.state().items()}
    resized = {key: torch.cat([v, v]) if key.startswith("wide.") and v.dim() else v for key, v in own.state().items()}
    for wrong in (renamed, resized):
        with pytest.raises(CheckpointError, match=r"optimizer: .*differ"):
            own.load_state(wrong)


@pytest.mark.parametrize("which", CONFIGS)
def test_its_config_counts_what_it_keeps(which):
    """What the memory budget plans with, the counts of steps left out."""
    module, config = Parameters(), config_of(which)
    roles = {"wide": "table", "matrix": "A"}
    state = made(which, module, roles=roles).state()
    for name, parameter in module.named_parameters():
        kept = sum(value.numel() for key, value in state.items() if key.startswith(f"{name}.") and value.dim())
        assert config.elements(tuple(parameter.shape), roles.get(name, "matrix")) == kept


@pytest.mark.parametrize("which", CONFIGS)
def test_each_parameter_learns_at_its_own_factor_of_the_rate(which):
    half, whole = Parameters(), Parameters()
    learn(half, made(which, half, factors=dict.fromkeys(["matrix", "vector"], 0.5)).step, 3)
    own = made(which, whole)
    learn(whole, lambda rate: own.step(rate / 2), 3)
    for name in ("matrix", "vector"):
        assert torch.equal(half.get_parameter(name), whole.get_parameter(name))
    assert not torch.equal(half.wide, whole.wide)


@pytest.mark.parametrize("which", [which for which, entries in CONFIGS.items() if "weight_decay" in entries])
def test_a_vector_with_two_dimensions_does_not_decay(which):
    for role, moves in (("matrix", True), ("vector", False)):
        module = Parameters()
        before, parameter = module.matrix.detach().clone(), module.get_parameter("matrix")
        parameter.grad = torch.zeros_like(parameter)
        optimizer(config_of(which), {"matrix": parameter}, roles={"matrix": role}).step(0.1)
        assert torch.equal(parameter, before) is not moves


def test_muon_leaves_vectors_to_adamw_whatever_their_shape():
    tensors = attach(base(), AdaLoRA(r=2)).plan.tensors
    left = {key for key, tensor in tensors.items() if not config_of("muon").takes(tensor.shape, tensor.role)}
    assert left == {key for key in tensors if key.endswith("lora_E")}
    gains = attach(base(), IA3()).plan.tensors.values()
    assert not any(config_of("muon").takes(gain.shape, gain.role) for gain in gains)


def test_muon_takes_the_matrices_of_hidden_layers_alone():
    taken = {}
    for method in (Full(), LoRA(r=2, alpha=6, target_modules=["embed_tokens", "q_proj"], bias="all")):
        tensors = attach(base(), method).plan.tensors
        config = config_of("muon")
        taken |= {key.removeprefix("base_model.model."): config.takes(t.shape, t.role) for key, t in tensors.items()}
    assert taken["model.layers.0.self_attn.q_proj.weight"]
    assert taken["model.layers.0.self_attn.q_proj.lora_A.weight"]
    left = {key for key, own in taken.items() if not own}
    assert left == {key for key in taken if "embed_tokens" in key or "norm" in key or "lm_head" in key}


@pytest.mark.parametrize("which", [which for which in CONFIGS if which != "adamw"])
def test_a_run_that_is_stopped_resumes_to_the_same_bits(which, tmp_path):
    """Schedule, clipping and LoRA+'s two rates included."""
    settings = {
        "steps": 6,
        "rows_per_step": 4,
        "learning_rate": 1e-2,
        "lora_plus_ratio": 4,
        "optimizer": config_of(which),
    }
    assert {"checkpoint_every", "keep_checkpoints"} <= FREE_TO_CHANGE

    def run(name, resume=False, **more):
        attached = attach(base(), LoRA(r=2, alpha=6))
        config = TrainConfig(**settings, **more)
        done = fit(attached, TASKS["causal_lm"], dataset(8), None, config, folder=tmp_path / name, resume=resume)
        return attached.state(), [line["loss"] for line in done.history]

    whole, losses = run("whole", checkpoint_every=3, keep_checkpoints=9)
    newest = tmp_path / "whole" / "checkpoints" / "step-00000006"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    again, resumed = run("whole", resume=True)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert losses == resumed
    assert len(set(losses)) == 6
