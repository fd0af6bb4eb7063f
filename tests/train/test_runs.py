"""Schedules, the floor, evaluation, early stopping, best and last: each by the numbers in metrics.jsonl."""

import json
import math
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from campaign.tiny_run import base, dataset, lora, noisy
from lorica.adapter import attach
from lorica.budget import Machine, Workload, free
from lorica.budget.machine import ROOM
from lorica.budget.memory import memory_of
from lorica.errors import CheckpointError, DivergedError, RequestError, RunError
from lorica.methods import LoRA
from lorica.methods.contract import Life
from lorica.tasks import TASKS, CausalLanguageModelling
from lorica.train import Quiet, TrainConfig, checkpoint, fit, loop, memory

TASK = TASKS["causal_lm"]


def adapted(**options):
    return attach(base(), lora(**options))


def train(folder, config, *, task=TASK, held_out=None, attached=None, **options):
    return fit(attached or adapted(dropout=0.0), task, dataset(12), held_out, config, folder=folder, **options)


def lines(folder, key="loss"):
    return [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if key in line]


def rates(folder, **settings):
    train(folder, TrainConfig(rows_per_step=4, learning_rate=0.5, **settings))
    return [line["learning_rate"] for line in lines(folder)]


def test_cosine_rises_to_the_peak_and_falls_to_the_floor(tmp_path):
    logged = rates(tmp_path / "run", steps=11, warmup=2, min_lr_ratio=0.2)
    assert logged[:3] == pytest.approx([0.5 / 3, 1.0 / 3, 0.5])
    assert logged[6] == pytest.approx(0.3)  # half-way down, between 0.5 and 0.1
    assert logged[4] == pytest.approx(0.1 + 0.4 * (1 + math.sqrt(0.5)) / 2)  # a quarter of the way
    assert logged[-1] == pytest.approx(0.1)
    assert min(logged[2:]) == logged[-1]
    assert logged[2:] == sorted(logged[2:], reverse=True)


def test_linear_falls_by_the_same_amount_each_step(tmp_path):
    logged = rates(tmp_path / "run", steps=5, schedule="linear", warmup=0, min_lr_ratio=0.0)
    assert logged == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])


def test_constant_stays_at_the_peak_after_a_share_of_warm_up(tmp_path):
    logged = rates(tmp_path / "run", steps=10, schedule="constant", warmup=0.3)
    assert logged == pytest.approx([0.125, 0.25, 0.375] + 7 * [0.5])


def test_a_single_step_is_made_at_the_peak(tmp_path):
    assert rates(tmp_path / "run", steps=1, warmup=0, min_lr_ratio=0.0) == [0.5]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("share", [0.03, 0.9])
def test_a_share_of_warm_up_leaves_the_last_step_at_the_peak_or_after_it(tmp_path, steps, share):
    assert max(rates(tmp_path / "run", steps=steps, warmup=share)) == 0.5


def test_a_warm_up_that_a_run_does_not_outlast_is_told(tmp_path):
    class Notes(Quiet):
        def on_note(self, text):
            notes.append(text)

    for steps, warned in ((4, False), (3, True)):
        notes: list[str] = []
        config = TrainConfig(rows_per_step=4, learning_rate=0.5, warmup=3, steps=steps)
        train(tmp_path / f"{steps}", config, reporter=Notes())
        assert (max(line["learning_rate"] for line in lines(tmp_path / f"{steps}")) < 0.5) == warned
        assert any(note.startswith("warning: train.warmup: 3 steps in a run of 3") for note in notes) == warned


def test_patience_without_an_evaluation_is_refused_before_the_run_has_a_folder(tmp_path):
    with pytest.raises(RequestError, match=r"train\.patience: 2 .* nothing is evaluated; give rows"):
        train(tmp_path / "run", TrainConfig(steps=1, patience=2))
    assert not (tmp_path / "run").exists()


def test_the_logged_rate_is_the_one_that_is_used(tmp_path):
    """Adam's first update moves an element by the learning rate, whatever its gradient."""
    attached = adapted(dropout=0.0, target_modules=["v_proj"])
    before = {name: tensor.clone() for name, tensor in attached.state().items() if "lora_B" in name}
    train(tmp_path / "run", TrainConfig(steps=1, warmup=0, learning_rate=0.03), attached=attached)
    moved = torch.cat([(attached.state()[name] - tensor).abs().flatten() for name, tensor in before.items()])
    assert moved.median().item() == pytest.approx(lines(tmp_path / "run")[0]["learning_rate"], rel=1e-3)


def test_a_line_a_step_has_every_key(tmp_path):
    run = train(tmp_path / "run", TrainConfig(epochs=2, rows_per_step=5, micro_batch_tokens=20))
    logged = lines(tmp_path / "run")
    keys = "step epoch loss tokens label_tokens learning_rate grad_norm seconds tokens_per_second memory_bytes"
    assert all(list(line) == keys.split() for line in logged)
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in logged] == pytest.approx([5 / 12, 10 / 12, 1, 17 / 12, 22 / 12, 2])
    data = dataset(12)
    assert sum(line["tokens"] for line in logged) == 2 * data.lengths.sum()
    assert sum(line["label_tokens"] for line in logged) == 2 * data.label_tokens
    assert (run.status, run.exit_status, run.steps, run.loss) == ("finished", 0, 6, logged[-1]["loss"])
    assert [line["step"] for line in run.history] == [1, 2, 3, 4, 5, 6]
    assert run.peak_bytes > 10_000_000


def test_evaluation_lines_carry_the_loss_and_the_metrics(tmp_path):
    held_out = dataset(5, seed=9)
    run = train(tmp_path / "run", TrainConfig(epochs=2, rows_per_step=5), held_out=held_out)
    logged = lines(tmp_path / "run", "eval_loss")
    assert [line["step"] for line in logged] == [3, 6]
    assert logged[-1]["perplexity"] == pytest.approx(math.exp(logged[-1]["eval_loss"]))
    assert logged[-1]["label_tokens"] == held_out.label_tokens
    assert run.eval in logged


class Scripted(CausalLanguageModelling):
    """Evaluates to the losses it is told, and remembers the adapter it was shown."""

    def __init__(self, attached, losses):
        super().__init__()
        object.__setattr__(self, "attached", attached)
        object.__setattr__(self, "losses", iter(losses))
        object.__setattr__(self, "seen", [])

    def evaluate(self, model, dataset, *, micro_batch_tokens):
        assert not any(module.training for module in model.modules())
        self.seen.append({name: tensor.clone() for name, tensor in self.attached.state().items()})
        return {"loss": next(self.losses), "rows": len(dataset)}


def saved(run):
    tensors = load_file(f"{run.adapter}/adapter_model.safetensors")
    return [tensors[name] for name in sorted(tensors)]


def shown(task, index):
    return [task.seen[index][name] for name in sorted(task.seen[index])]


def test_patience_stops_the_run_and_the_best_adapter_is_kept(tmp_path):
    attached = adapted()
    task = Scripted(attached, [5.0, 4.0, 4.5, 4.0, 3.0])
    config = TrainConfig(steps=20, rows_per_step=4, evaluate_every=3, patience=2, learning_rate=1e-2)
    run = train(tmp_path / "run", config, task=task, attached=attached, held_out=dataset(2))
    logged = lines(tmp_path / "run", "eval_loss")
    assert [(line["step"], line["eval_loss"], line["best"]) for line in logged] == [
        (3, 5.0, True),
        (6, 4.0, True),
        (9, 4.5, False),
        (12, 4.0, False),
    ]
    assert (run.status, run.steps, run.total_steps, run.best_step) == ("stopped early", 12, 20, 6)
    assert run.eval is not None
    assert run.eval["eval_loss"] == 4.0
    assert len(lines(tmp_path / "run")) == 12
    assert all(map(torch.equal, saved(run), shown(task, 1)))
    assert not all(map(torch.equal, saved(run), shown(task, 3)))
    held = attached.state()
    assert all(torch.equal(held[name], tensor) for name, tensor in task.seen[1].items())


def test_without_patience_the_run_goes_on_and_the_best_is_kept(tmp_path):
    attached = adapted()
    task = Scripted(attached, [2.0, 3.0, 4.0])
    config = TrainConfig(steps=6, rows_per_step=4, evaluate_every=2, learning_rate=1e-2)
    run = train(tmp_path / "run", config, task=task, attached=attached, held_out=dataset(2))
    assert (run.status, run.steps, run.best_step) == ("finished", 6, 2)
    assert all(map(torch.equal, saved(run), shown(task, 0)))


def test_without_evaluation_the_last_is_kept(tmp_path):
    attached = adapted()
    run = train(tmp_path / "run", TrainConfig(steps=4, rows_per_step=4, learning_rate=1e-2), attached=attached)
    assert (run.best_step, run.eval) == (4, None)
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000004").tensors["adapter"]
    held = attached.state()
    assert all(torch.equal(held[name], last[name]) for name in held)
    assert len(saved(run)) == len(held)


def test_the_last_step_is_always_evaluated_and_checkpointed(tmp_path):
    config = TrainConfig(steps=5, rows_per_step=4, evaluate_every=4, checkpoint_every=4)
    train(tmp_path / "run", config, held_out=dataset(2))
    assert [line["step"] for line in lines(tmp_path / "run", "eval_loss")] == [4, 5]
    assert [path.name for path in checkpoint.folders(tmp_path / "run" / "checkpoints")] == [
        "step-00000004",
        "step-00000005",
    ]


def test_epochs_are_evaluated_and_checkpointed_at_their_ends(tmp_path):
    config = TrainConfig(epochs=3, rows_per_step=5, checkpoint_every="epoch", keep_checkpoints=5)
    train(tmp_path / "run", config, held_out=dataset(2))
    assert [line["step"] for line in lines(tmp_path / "run", "eval_loss")] == [3, 6, 9]
    assert [folder.name[-1] for folder in checkpoint.folders(tmp_path / "run" / "checkpoints")] == ["3", "6", "9"]


def test_a_divergence_saves_nothing_and_keeps_what_was_saved(tmp_path):
    model = base()
    data = dataset(12)
    plan = [3, 6]
    for example in data.examples:
        example.input_ids[example.input_ids == 60] = 0
    from lorica.data import steps as schedule_of

    poisoned = schedule_of(data.lengths, rows_per_step=1, steps=8, seed=0)[6][0]
    data[poisoned].input_ids[0] = 60
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = float("nan")
    attached = attach(model, lora(target_modules=["q_proj"]))
    config = TrainConfig(steps=8, rows_per_step=1, checkpoint_every=3, evaluate_every=100)
    with pytest.raises(DivergedError, match=rf"step 7: .*train\.jsonl:{poisoned + 1};") as caught:
        fit(attached, TASK, data, None, config, folder=tmp_path / "run")
    assert caught.value.exit_status == 1
    assert len(lines(tmp_path / "run")) == 6
    assert not (tmp_path / "run" / "adapter").exists()
    kept = checkpoint.folders(tmp_path / "run" / "checkpoints")
    assert [checkpoint.load(folder).step for folder in kept] == plan


def test_an_evaluation_that_diverges_says_how_the_best_adapter_is_kept(tmp_path, monkeypatch):
    attached = adapted()
    task = Scripted(attached, [5.0, 4.0, 4.5, math.nan])
    config = TrainConfig(steps=20, rows_per_step=4, evaluate_every=2, checkpoint_every=3, learning_rate=1e-2)
    with pytest.raises(DivergedError, match=r"finish=True .* makes the adapter that .*/step-00000006 holds$"):
        train(tmp_path / "run", config, task=task, attached=attached, held_out=dataset(2))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    task.seen.pop()
    run = train(tmp_path / "run", config, task=task, attached=adapted(), held_out=dataset(2), finish=True)
    assert (run.status, run.exit_status, run.steps, run.total_steps, run.best_step) == ("cut short", 0, 6, 20, 4)
    assert all(map(torch.equal, saved(run), shown(task, 1)))
    told = json.loads((tmp_path / "run/adapter/lorica.json").read_text())
    assert told["cut_short"] == {"step": 4, "after": 6, "of": 20}
    assert told["metrics"]["step"] == 4
    (taught,) = [line["loss"] for line in lines(tmp_path / "run") if line["step"] == 4 and "loss" in line]
    assert told["metrics"]["loss"] == taught


def test_a_run_that_was_cut_short_still_goes_on_to_the_same_bits(tmp_path):
    config = TrainConfig(steps=9, rows_per_step=4, learning_rate=1e-2)
    whole = train(tmp_path / "whole", config, attached=adapted())
    reporter = Interrupting(4, signal.SIGINT)
    train(tmp_path / "run", config, attached=adapted(), reporter=reporter)
    assert reporter.notes[-1].endswith("/run/checkpoints/step-00000004 holds")
    cut = train(tmp_path / "run", config, attached=adapted(), finish=True)
    last = checkpoint.load(tmp_path / "run/checkpoints/step-00000004").tensors["adapter"]
    assert all(map(torch.equal, saved(cut), [last[name] for name in sorted(last)]))
    rest = train(tmp_path / "run", config, attached=adapted(), resume=True)
    assert all(map(torch.equal, saved(rest), saved(whole)))
    assert "cut_short" not in json.loads((tmp_path / "run/adapter/lorica.json").read_text())
    assert train(tmp_path / "run", config, attached=adapted(), finish=True).status == "finished"


def test_no_adapter_is_made_of_another_run_or_of_a_damaged_checkpoint(tmp_path):
    config = TrainConfig(steps=6, rows_per_step=4)
    train(tmp_path / "run", config, reporter=Interrupting(2, signal.SIGINT))
    with pytest.raises(CheckpointError, match=r"train\.seed: saved with 0, now 5"):
        train(tmp_path / "run", config.model_copy(update={"seed": 5}), finish=True)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    (tmp_path / "run/checkpoints/step-00000002/MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint verifies.*step-00000002: has no MANIFEST"):
        train(tmp_path / "run", config, finish=True)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "run/adapter").exists()
    with pytest.raises(RequestError, match="a run without a folder has no checkpoint"):
        train(None, config, finish=True)


def test_an_evaluation_that_is_not_finite_is_a_divergence(tmp_path):
    attached = adapted()
    task = Scripted(attached, [math.nan])
    with pytest.raises(DivergedError, match="step 1: the evaluation loss is not finite"):
        train(tmp_path / "run", TrainConfig(steps=2), task=task, attached=attached, held_out=dataset(2))
    assert not (tmp_path / "run" / "adapter").exists()
    assert not checkpoint.folders(tmp_path / "run" / "checkpoints")


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    train(tmp_path / "run", TrainConfig(steps=1))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(RequestError, match=r"holds a run already .*--resume.*another output"):
        train(tmp_path / "run", TrainConfig(steps=1))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_two_runs_cannot_hold_one_folder(tmp_path):
    class Second(Quiet):
        def on_step(self, record):
            train(tmp_path / "run", TrainConfig(steps=1), resume=True)

    with pytest.raises(RunError, match="another run uses this folder"):
        train(tmp_path / "run", TrainConfig(steps=1), reporter=Second())


def test_a_run_without_a_folder_keeps_its_history_in_memory():
    run = train(None, TrainConfig(steps=3), held_out=dataset(2))
    assert run.adapter is None
    assert [line["step"] for line in run.history if "loss" in line] == [1, 2, 3]
    assert "history" not in run.to_dict()
    json.dumps(run.to_dict())


class Interrupting(Quiet):
    def __init__(self, step, number, times=1):
        self.step, self.number, self.times, self.notes = step, number, times, []

    def on_step(self, record):
        if record.step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
                time.sleep(0.1)  # two pending signals of one number are one signal; another thread may be the receiver

    def on_note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(tmp_path, number):
    config = TrainConfig(steps=9, rows_per_step=4, evaluate_every=3, learning_rate=1e-2)
    whole = train(tmp_path / "whole", config, attached=adapted(), held_out=dataset(3))
    handlers = signal.getsignal(number)
    reporter = Interrupting(4, number)
    part = train(tmp_path / "part", config, attached=adapted(), held_out=dataset(3), reporter=reporter)
    assert signal.getsignal(number) is handlers
    assert (part.status, part.exit_status, part.steps, part.adapter) == ("interrupted", 130, 4, None)
    assert f"{number.name}: stopped after step 4 of 9, saved in" in reporter.notes[-1]
    assert "resume" in reporter.notes[-1]
    rest = train(tmp_path / "part", config, attached=adapted(), held_out=dataset(3), resume=True)
    assert all(map(torch.equal, saved(rest), saved(whole)))
    assert [line["loss"] for line in lines(tmp_path / "part")] == [line["loss"] for line in lines(tmp_path / "whole")]
    assert (rest.best_step, rest.eval) == (whole.best_step, whole.eval)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As under nohup, or in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = train(tmp_path / "run", TrainConfig(steps=4), reporter=Interrupting(2, signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (run.status, run.steps) == ("finished", 4)


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", TrainConfig(steps=9), reporter=Interrupting(2, signal.SIGINT, times=2))
    assert not checkpoint.folders(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": {"learning_rate": 0.5}}, r"train\.learning_rate: saved with 0\.01, now 0\.5"),
        ({"config": {"seed": 5}}, r"train\.seed: saved with 0, now 5"),
        ({"identity": {"base": "other"}}, "base: saved with 'this', now 'other'"),
        ({"rows": 13}, r"data\.train: saved with"),
    ],
)
def test_a_changed_run_is_not_resumed(tmp_path, change, told):
    settings = {"steps": 6, "rows_per_step": 4, "learning_rate": 0.01}
    reporter = Interrupting(2, signal.SIGINT)
    identity = {"base": "this"}
    train(tmp_path / "run", TrainConfig(**settings), reporter=reporter, identity=identity)
    data, config = dataset(change.get("rows", 12)), TrainConfig(**{**settings, **change.get("config", {})})
    with pytest.raises(CheckpointError, match=told) as caught:
        fit(
            adapted(),
            TASK,
            data,
            None,
            config,
            folder=tmp_path / "run",
            resume=True,
            identity=change.get("identity", identity),
        )
    assert "\n" not in str(caught.value)
    assert "threads" not in str(caught.value)


def test_other_threads_are_named_since_the_bits_would_differ(tmp_path, monkeypatch):
    config = TrainConfig(steps=6, rows_per_step=4)
    train(tmp_path / "run", config, reporter=Interrupting(2, signal.SIGINT))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    with pytest.raises(CheckpointError, match=r"threads: saved with \d+, now 99.*OMP_NUM_THREADS"):
        train(tmp_path / "run", config, resume=True)


def test_another_rank_is_not_resumed(tmp_path):
    config = TrainConfig(steps=6, rows_per_step=4)
    train(tmp_path / "run", config, reporter=Interrupting(2, signal.SIGINT))
    with pytest.raises(CheckpointError, match=r"method: saved with .*'r': 4.*now .*'r': 2"):
        train(tmp_path / "run", config, attached=adapted(r=2, dropout=0.0), resume=True)


def test_a_finished_run_is_resumed_as_it_is(tmp_path):
    config = TrainConfig(steps=3, rows_per_step=4)
    run = train(tmp_path / "run", config, held_out=dataset(2))
    again = train(tmp_path / "run", config, held_out=dataset(2), resume=True)
    assert {**again.to_dict(), "peak_bytes": 0} == {**run.to_dict(), "peak_bytes": 0}
    assert all(map(torch.equal, saved(again), saved(run)))


def test_base_dropout_draws_from_the_generator_that_a_resume_restores(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 61, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = TrainConfig(steps=6, rows_per_step=4, base_dropout=True, learning_rate=1e-2)
    state = GPT2LMHeadModel(GPT2Config(**sizes)).state_dict()

    def run(folder, **options):
        torch.rand(len(str(folder)))
        model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2))
        model.load_state_dict(state)
        return train(
            tmp_path / folder, options.pop("config", config), attached=attach(model, LoRA(r=2, alpha=6)), **options
        )

    whole = run("whole")
    run("part", reporter=Interrupting(2, signal.SIGINT))
    rest = run("part", resume=True)
    losses = [line["loss"] for line in whole.history]
    assert [line["loss"] for line in rest.history] == losses
    quiet = run("quiet", config=config.model_copy(update={"base_dropout": False}))
    assert [line["loss"] for line in quiet.history] != losses


def test_gradient_checkpointing_changes_no_bit(tmp_path):
    config = TrainConfig(steps=4, rows_per_step=6, learning_rate=1e-2)
    plain = train(None, config, attached=adapted())
    for layers in (True, 1):
        recomputed = train(None, config.model_copy(update={"gradient_checkpointing": layers}), attached=adapted())
        assert [line["loss"] for line in recomputed.history] == [line["loss"] for line in plain.history]
        assert recomputed.history[-1]["grad_norm"] == plain.history[-1]["grad_norm"]


@pytest.mark.parametrize("base_dropout", [False, True])
def test_blocks_of_transformers_are_computed_again_in_evaluation_mode_too(base_dropout):
    sizes = {"vocab_size": 61, "n_positions": 32, "n_embd": 16, "n_layer": 4, "n_head": 2}
    config = TrainConfig(steps=2, rows_per_step=6, learning_rate=1e-2, base_dropout=base_dropout, measure=False)
    found = {}
    for layers in (False, True, 2):
        torch.manual_seed(0)
        model, calls = GPT2LMHeadModel(GPT2Config(**sizes)).eval(), []
        for block in model.transformer.h:
            block.attn.register_forward_hook(lambda *given, calls=calls: calls.append(1))
        given = config.model_copy(update={"gradient_checkpointing": layers})
        losses = [line["loss"] for line in train(None, given, attached=attach(model, lora())).history]
        found[layers] = len(calls), losses
        assert all("forward" not in block.__dict__ for block in model.transformer.h)
    assert [calls for calls, _ in found.values()] == [8, 16, 12]
    assert found[False][1] == found[True][1] == found[2][1]


class Noting(Quiet):
    def __init__(self):
        self.notes = []

    def on_note(self, note):
        self.notes.append(note)


def test_memory_decides_how_many_blocks_are_computed_again_and_no_bit_of_the_run(monkeypatch):
    config = TrainConfig(steps=3, rows_per_step=6, learning_rate=1e-2, measure=False)
    longest = int(max(dataset(12).lengths))

    def run(available):
        """The losses, and what was said."""
        attached, reporter = attach(base(layers=4), lora()), Noting()
        monkeypatch.setattr(loop, "machine_of", lambda model: Machine("a small machine", "cpu", available))
        done = train(None, config, attached=attached, reporter=reporter)
        assert attached.model.model.recomputed_layers == 0, "what a run set is undone"
        return [line["loss"] for line in done.history], reporter.notes

    plan = attach(base(layers=4), lora()).plan
    work = Workload(tokens=6 * longest, length=longest)
    peaks = [memory_of(plan, replace(work, recomputed=n), "cpu", decoder=True).peak for n in (0, 2, 3)]
    plain, silent = run(int(peaks[0] / ROOM) + 1)
    assert not silent
    for available, told in ((peaks[1], "2 blocks"), (peaks[2], "3 blocks"), (1, "all blocks")):
        losses, (note,) = run(int(available / ROOM) + 1)
        assert note.startswith(f"{told} are computed again in the backward pass, to fit into a small machine, ")
        assert losses == plain


class Wandering(Life):
    """A life that records the calls it gets and what it finds when it gets them."""

    def __init__(self, modules):
        self.modules, self.calls = modules, []
        self.before = None

    def extra_loss(self):
        self.before = next(iter(self.modules.values())).B.detach().clone()
        self.calls.append("extra_loss")
        return 0.01 * sum(module.B.square().sum() for module in self.modules.values())

    def after_step(self, step, total):
        module = next(iter(self.modules.values()))
        assert module.B.grad is not None, "gradients are cleared only afterwards"
        assert not torch.equal(module.B, self.before), "the optimiser has taken its step"
        self.calls.append((step, total))

    def state_dict(self):
        return {"calls": torch.tensor(len(self.calls))}

    def load_state_dict(self, state):
        self.calls = [None] * int(state["calls"])


class Living(LoRA):
    """LoRA with a life of its own."""

    def life(self, modules):
        return Wandering(modules)


def test_a_method_with_a_life_gets_its_two_calls_once_a_step_in_order():
    attached = attach(base(), Living(r=2, alpha=6))
    train(None, TrainConfig(steps=3, micro_batch_tokens=10), attached=attached)
    (life,) = attached.life.lives.values()
    assert life.calls == ["extra_loss", (1, 3), "extra_loss", (2, 3), "extra_loss", (3, 3)]


def test_the_extra_loss_counts_once_whatever_the_split():
    def norms(tokens):
        attached = noisy(attach(base(torch.float64), Living(r=2, alpha=6)))
        run = train(None, TrainConfig(steps=2, micro_batch_tokens=tokens), attached=attached)
        return [(line["loss"], line["grad_norm"]) for line in run.history]

    assert norms(10) == [pytest.approx(pair, rel=1e-11) for pair in norms(10_000)]


def test_low_memory_is_said_once(monkeypatch):
    sizes = {"/proc/meminfo": [["MemTotal:", "1000000", "kB"], ["MemAvailable:", "20000", "kB"]]}
    monkeypatch.setattr(free, "_fields", lambda path: sizes.get(path, []))
    reporter = Interrupting(-1, signal.SIGINT)
    train(None, TrainConfig(steps=12, measure=False), reporter=reporter)
    recomputed, low = reporter.notes
    assert "all blocks are computed again" in recomputed
    assert "memory runs low: 0.0 of 1.0 GB left on this machine; lower train.micro_batch_tokens" in low


def test_the_bound_of_a_container_counts_files_it_can_let_go_of_as_free(monkeypatch):
    group = "/sys/fs/cgroup/memory."
    sizes = {
        "/proc/meminfo": [["MemTotal:", "10000000", "kB"], ["MemAvailable:", "9000000", "kB"]],
        f"{group}max": [["1000000"]],
        f"{group}current": [["900000"]],
        f"{group}stat": [["anon", "300000"], ["inactive_file", "400000"], ["active_file", "200000"]],
    }
    monkeypatch.setattr(free, "_fields", lambda path: sizes.get(path, []))
    assert free.free_memory(torch.device("cpu")) == (700_000, 1_000_000)
    assert memory.shortage(torch.device("cpu")) is None


def test_tensorboard_has_the_numbers_of_the_metrics(tmp_path):
    train(tmp_path / "run", TrainConfig(steps=3, rows_per_step=4, tensorboard=True), held_out=dataset(2))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines(tmp_path / "run")]
    assert [event.step for event in events.Scalars("eval/loss")] == [3]


def test_the_reporter_hears_of_the_plan_each_step_and_each_evaluation():
    heard = []

    class Listening(Quiet):
        def on_plan(self, total_steps, done_steps, epochs):
            heard.append((total_steps, done_steps, epochs))

        def on_step(self, record):
            heard.append(str(record).partition(":")[0])

        def on_eval(self, record):
            heard.append(record.best)

    train(None, TrainConfig(epochs=1, rows_per_step=6), held_out=dataset(2), reporter=Listening())
    assert heard == [(2, 0, 1.0), "step 1", "step 2", True]


def test_the_base_is_in_evaluation_mode_and_the_adapter_is_not_while_learning():
    modes = []

    class Watching(CausalLanguageModelling):
        def loss(self, model, batch):
            learning = {name for name, module in model.named_modules() if module.training}
            modes.append(bool(learning) and all("adapter" in name for name in learning))
            return super().loss(model, batch)

    train(None, TrainConfig(steps=2, measure=False), task=Watching())
    assert modes == [True, True]
