"""A run that ended before its first checkpoint makes way; what a run keeps does not, and is made an adapter whole."""

import json
import shutil

import pytest

from campaign.tiny_run import base, dataset, lora
from crashes import crashes
from lorica import durable
from lorica.adapter import attach, read
from lorica.errors import RequestError
from lorica.tasks import TASKS
from lorica.train import Quiet, TrainConfig, fit
from lorica.train.run_folder import RunFolder


class Crash(Exception):
    pass


class Crashing(Quiet):
    def on_step(self, record):
        if record.step == 3:
            raise Crash


def train(folder, recipe, before, **options):
    attached = attach(base(), lora(dropout=0.0))
    settings = {name: options.pop(name) for name in TrainConfig.model_fields if name in options}
    config = TrainConfig(**{"steps": 2, "rows_per_step": 4, **settings})
    task, rows = TASKS["causal_lm"], dataset(12)
    given = {"folder": folder, "recipe": recipe, "before": lambda: {"loss": before}, **options}
    return fit(attached, task, rows, dataset(3), config, **given)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_saved_nothing_makes_way_for_one_of_another_recipe(tmp_path, resume):
    with pytest.raises(Crash):
        train(tmp_path, "the first", 5.0, steps=9, reporter=Crashing())
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3]
    run = train(tmp_path, "the second", 4.0, resume=resume)
    assert (tmp_path / "recipe.yaml").read_text() == "the second"
    assert [(line["step"], line.get("eval_loss")) for line in lines(tmp_path)][:3] == [(0, 4.0), (1, None), (2, None)]
    assert [dict(line) for line in run.history] == lines(tmp_path)


def test_the_score_of_the_base_is_made_again_where_it_was_lost(tmp_path):
    """Memory may run out, or the process be killed, while the base is scored."""
    (tmp_path / "metrics.jsonl").touch()
    train(tmp_path, "a recipe", 4.0, resume=True)
    assert lines(tmp_path)[0] == {"step": 0, "epoch": 0.0, "eval_loss": 4.0}


def test_a_run_that_is_gone_on_with_keeps_its_recipe_and_the_score_of_the_base(tmp_path):
    train(tmp_path, "the first", 5.0)
    train(tmp_path, "the second", 4.0, resume=True)
    assert (tmp_path / "recipe.yaml").read_text() == "the first"
    assert [line["eval_loss"] for line in lines(tmp_path) if line["step"] == 0] == [5.0]


@pytest.mark.parametrize("kept", ["adapter", "checkpoints/step-00000002", "checkpoints/.old-step-00000002-1-0a0a0a0a"])
def test_what_a_run_keeps_is_not_begun_anew_on(tmp_path, kept):
    """Nor is a checkpoint that was being replaced when the power failed."""
    (tmp_path / kept).mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text("the first")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(RequestError, match=rf"holds a run already \({kept.partition('/')[0]}\).*--resume"):
        train(tmp_path, "the second", 4.0)
    assert (tmp_path / "recipe.yaml").read_text() == "the first"
    assert lines(tmp_path) == [{"step": 1}]


def test_a_crash_at_any_call_of_a_beginning_leaves_a_folder_to_begin_in(tmp_path):
    def begin(root, recipe="the second"):
        with RunFolder(root / "run", resume=False, identity={}, keep=1, recipe=recipe) as place:
            place.record({"step": 0})

    def ended_before(root):
        (root / "run/checkpoints").mkdir(parents=True)
        durable.write_text(root / "run/recipe.yaml", "the first")
        durable.write_text(root / "run/metrics.jsonl", '{"step": 0}\n{"step": 1}\n')

    died = 0
    for died, root in crashes(tmp_path, ended_before, begin, "killed"):  # noqa: B007
        begin(root, "the third")
        assert (root / "run/recipe.yaml").read_text() == "the third"
        assert lines(root / "run") == [{"step": 0}]
    assert died > 4


def test_a_kill_at_any_call_while_a_cut_run_s_adapter_is_made_leaves_none_or_the_whole(tmp_path):
    def finish(root):
        return train(root / "run", "a recipe", 5.0, steps=4, finish=True)

    train(tmp_path / "run", "a recipe", 5.0, steps=4, checkpoint_every=2, measure=False)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    shutil.rmtree(tmp_path / "run/adapter")
    found = {True: 0, False: 0}
    for _, root in crashes(
        tmp_path / "killed", lambda root: shutil.copytree(tmp_path / "run", root / "run"), finish, "killed"
    ):
        whole = (root / "run/adapter").exists()
        found[whole] += 1
        if whole:
            read(root / "run/adapter")
        assert finish(root).status == "cut short"
        assert read(root / "run/adapter").manifest["cut_short"] == {"step": 2, "after": 2, "of": 4}
        shutil.rmtree(root)
    assert found[True]
    assert found[False] > 10
