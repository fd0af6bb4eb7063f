"""AdaLoRA under both trainers: nothing for the user to call, resumed to the same bits, and no run ends unnoticed."""

import json
import os
import signal
import time
import warnings

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import lorica
from campaign.tiny_run import base, dataset
from lorica.adapter import UnfinishedWarning, attach, load, merge_checkpoint
from lorica.errors import AdapterError, CheckpointError, RecipeError, RunError
from lorica.methods import AdaLoRA
from lorica.methods.rank_budget import Allocation
from lorica.tasks import TASKS
from lorica.train import Quiet, TrainConfig, fit

METHOD = AdaLoRA(r=1, init_r=3, alpha=8, dropout=0.1)
BUDGET = 7
"""The seven linears of one layer."""
CONFIG = TrainConfig(steps=10, rows_per_step=4, learning_rate=1e-2, evaluate_every=3)


def adapted():
    return attach(base(), METHOD, seed=2)


def kept(attached):
    return sum(module.kept for module in attached.modules.values())


def train(folder, attached, config=CONFIG, **options):
    task = options.pop("task", TASKS["causal_lm"])
    return fit(attached, task, dataset(12), dataset(3), config, folder=folder, **options)


class Stopping(Quiet):
    def __init__(self):
        self.notes = []

    def on_note(self, text):
        self.notes.append(text)

    def on_step(self, record):
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)


def test_a_run_that_is_killed_while_ranks_are_chosen_ends_with_the_same_bits(tmp_path):
    whole, rest = adapted(), adapted()
    run = train(tmp_path / "whole", whole)
    assert kept(whole) == BUDGET
    part = train(tmp_path / "part", adapted(), reporter=Stopping())
    assert (part.status, part.steps) == ("interrupted", 3)
    again = train(tmp_path / "part", rest, resume=True)
    assert all(torch.equal(value, rest.state()[key]) for key, value in whole.state().items())
    assert again.loss == run.loss
    found = load(base(), str(run.adapter))
    assert kept(found) == BUDGET


def test_without_its_scores_a_run_would_end_otherwise(tmp_path, monkeypatch):
    """The control of the test above: PEFT keeps none in its checkpoints."""
    whole, rest = adapted(), adapted()
    train(None, whole)
    train(tmp_path / "part", adapted(), reporter=Stopping())
    monkeypatch.setattr(Allocation, "load_state_dict", lambda life, state: None)
    train(tmp_path / "part", rest, resume=True)
    assert not all(torch.equal(value, rest.state()[key]) for key, value in whole.state().items())


def test_a_run_in_which_it_never_fired_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(Allocation, "after_step", lambda life, step, total: None)
    with pytest.raises(RunError, match=r"the run is over, and no adapter of it is kept: adalora: 21 singular .* 7"):
        train(tmp_path / "run", adapted())
    assert not (tmp_path / "run" / "adapter").exists()


def test_no_adapter_is_made_of_a_run_whose_ranks_are_not_chosen_yet(tmp_path):
    reporter = Stopping()
    train(tmp_path / "run", adapted(), reporter=reporter)
    assert "resume=True" in reporter.notes[-1]
    assert "finish" not in reporter.notes[-1]
    with pytest.raises(RunError, match=r"step 3: the run is to be resumed \(it has 10 steps\), and no adapter of it"):
        train(tmp_path / "run", adapted(), finish=True)
    assert not (tmp_path / "run" / "adapter").exists()
    assert train(tmp_path / "run", adapted(), resume=True).status == "finished"


def test_too_few_steps_are_refused_before_the_folder_is_touched(tmp_path):
    attached = attach(base(), AdaLoRA(r=1, tinit=5, tfinal=5))
    with pytest.raises(RecipeError, match="leave none of the run's 10 steps"):
        train(tmp_path / "run", attached)
    assert not (tmp_path / "run").exists()


class Rising(type(TASKS["causal_lm"])):
    """Every evaluation is worse than the one before."""

    def evaluate(self, model, dataset, *, micro_batch_tokens):
        self.made.append(len(self.made))
        return {"loss": 1.0 + len(self.made)}


def test_an_adapter_above_its_budget_is_never_the_best_and_does_not_try_patience(tmp_path):
    task = Rising()
    object.__setattr__(task, "made", [])
    config = CONFIG.model_copy(update={"evaluate_every": 1, "patience": 2})
    attached = adapted()
    run = train(tmp_path / "run", attached, config, task=task)
    # int(7 + 14 (1 - (t - 1) / 5)^3) comes down to 7 at t = 4
    assert (run.best_step, run.steps, run.status) == (4, 6, "stopped early")
    assert kept(attached) == BUDGET
    assert kept(load(base(), str(run.adapter))) == BUDGET


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    base().save_pretrained(place)
    return place


@pytest.fixture(autouse=True)
def without_the_warnings_of_others():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


IDS = torch.randint(3, 61, (12, 9), generator=torch.Generator().manual_seed(2)).tolist()
ROWS = [{"input_ids": row, "labels": row} for row in IDS]


def of_transformers(folder, out, kind=lorica.Trainer, **more):
    handle = attach(lorica.load_base(folder), METHOD, seed=2)
    settings = {
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 2,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **more,
    }
    model = handle if kind is lorica.Trainer else handle.model
    return handle, kind(model, hf.TrainingArguments(str(out), **settings), train_dataset=ROWS)


def test_transformers_trainer_drives_it_and_resumes_to_the_same_bits(folder, tmp_path):
    whole, trainer = of_transformers(folder, tmp_path / "whole")
    trainer.train()
    assert kept(whole) == BUDGET
    rest, trainer = of_transformers(folder, tmp_path / "rest")
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(value, rest.state()[key]) for key, value in whole.state().items())
    last = json.loads((tmp_path / "whole/checkpoint-8/adapter/lorica.json").read_text())
    assert "unfinished" not in last
    assert "unfinished" in json.loads((tmp_path / "whole/checkpoint-2/adapter/lorica.json").read_text())
    next((tmp_path / "whole/checkpoint-2/trained").glob("*/life.safetensors")).unlink()
    _, trainer = of_transformers(folder, tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"life\.safetensors"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


def test_transformers_trainer_adds_the_extra_loss_once_a_step(folder, tmp_path):
    """Two micro-batches or one: the same first step, as far as rounding goes."""
    norms = []
    for size, parts in ((4, 1), (2, 2)):
        settings = {"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": size, "logging_steps": 1}
        handle, trainer = of_transformers(
            folder, tmp_path / str(size), gradient_accumulation_steps=parts, max_grad_norm=1e6, **settings
        )
        for module in handle.modules.values():  # the loss says nothing at the start, where L is zero
            module.L.data.fill_(0.0)
            module.L.requires_grad_(False)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)


def test_a_run_of_transformers_that_ends_early_fails(folder, tmp_path):
    class Early(hf.TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_training_stop = state.global_step == 3

    _, trainer = of_transformers(folder, tmp_path)
    trainer.add_callback(Early())
    with pytest.raises(RunError, match="step 3: the run is over, and its adapter is not finished"):
        trainer.train()


def test_transformers_own_trainer_leaves_it_undriven_and_saving_says_so(folder, tmp_path):
    handle, trainer = of_transformers(folder, tmp_path, kind=hf.Trainer, save_strategy="no", max_steps=2)
    trainer.train()
    with pytest.warns(UnfinishedWarning, match="21 singular values are left where the budget is 7"):
        handle.save(tmp_path / "adapter")
    assert not lorica.verify(tmp_path / "adapter", model=str(folder))
    with pytest.raises(AdapterError, match="not finished"):
        merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    told = {check.name: check.ok for check in lorica.verify(tmp_path / "adapter", model=str(folder)).checks}
    assert told["finished"] is False
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")
