"""A run killed by SIGKILL at random instants ends with the bits of the run that nobody killed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import killed_runs
import pytest

from lorica.adapter import Attached
from lorica.train import checkpoint, loop
from lorica.train.optimizer import AdamW

KILLS = 20


def test_a_run_killed_at_twenty_random_instants_ends_with_the_same_bits(tmp_path):
    server = Path(__file__).with_name("killed_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(server), str(tmp_path), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["different"] == []
    assert told["kills"] >= KILLS
    assert told["groups"] == ["adapter", "best", "generators", "life", "optimizer"]
    assert (told["steps"], told["lines"]) == (15, 15 + 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    killed_runs.train(folder, keep=8)
    return folder


def stopped_after(step, whole, folder):
    """As if the run had been killed just after the checkpoint of this step."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "adapter")
    for later in checkpoint.folders(folder / "checkpoints"):
        if checkpoint.load(later).step > step:
            shutil.rmtree(later)


FORGOTTEN = {
    "generators": (loop, "_restore_generators"),
    "optimiser": (AdamW, "load_state"),
    "adapter": (Attached, "load_state"),
    "life": (killed_runs.Wandering, "load_state_dict"),
}


@pytest.mark.parametrize("part", ["nothing", *FORGOTTEN])
def test_the_comparison_would_notice_a_part_that_a_resume_forgets(tmp_path, monkeypatch, whole, part):
    stopped_after(6, whole, tmp_path / "part")
    if part != "nothing":
        monkeypatch.setattr(*FORGOTTEN[part], lambda *arguments: None)
    killed_runs.train(tmp_path / "part")
    expected, found = killed_runs.outcome(whole), killed_runs.outcome(tmp_path / "part")
    assert found["step"] == expected["step"]
    assert (found == expected) is (part == "nothing")
