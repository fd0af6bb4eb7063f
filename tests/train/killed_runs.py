"""A fork server: imports torch once, then kills and resumes runs at random instants until enough kills have landed.

python killed_runs.py FOLDER KILLS  ->  one line of JSON: how the runs ended, compared with one that nobody killed

A run has dropout, an evaluation, rows of ragged lengths, a partial last step of each epoch, and a method whose life
holds state and draws from torch's global generator, so every part of a checkpoint matters to its last bits.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny_run import base, dataset, lora

from lorica.adapter import attach
from lorica.methods import LoRA
from lorica.tasks import TASKS
from lorica.train import TrainConfig, checkpoint, fit

TIMINGS = {"seconds", "tokens_per_second", "memory_bytes"}
CONFIG = TrainConfig(
    epochs=3,
    rows_per_step=5,
    micro_batch_tokens=24,
    learning_rate=1e-2,
    clip=0.5,
    evaluate_every=4,
    checkpoint_every=2,
)


class Wandering:
    """Pulls B towards zero by an amount that drifts at random."""

    def __init__(self, modules):
        self.modules, self.amount = modules, torch.tensor(0.01)

    def extra_loss(self):
        return self.amount * sum(module.B.square().sum() for module in self.modules.values())

    def after_step(self, step, total):
        self.amount = self.amount + 0.01 * torch.rand(())

    def state_dict(self):
        return {"amount": self.amount}

    def load_state_dict(self, state):
        self.amount = state["amount"].clone()


class Living(LoRA):
    def life(self, modules):
        return Wandering(modules)


def train(folder, keep=2):
    torch.manual_seed(0)
    attached = attach(base(), Living(**lora().model_dump()))
    config = CONFIG.model_copy(update={"keep_checkpoints": keep})
    fit(attached, TASKS["causal_lm"], dataset(22), dataset(4, seed=1), config, folder=folder, resume=True)


def forked(folder):
    """The process of a child that trains; it exits with 0 when its run is finished."""
    child = os.fork()
    if child == 0:
        try:
            train(folder)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child


def killed_after(folder, delay):
    """Whether the run was still going, and was killed, `delay` seconds after it began (None: it is left alone)."""
    child = forked(folder)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{folder}: a resumed run failed")
    return False


def outcome(folder):
    """Everything that must not depend on being killed: tensors by digest, losses by their exact decimal form."""
    found, _ = checkpoint.newest(folder / "checkpoints")
    digests = {
        f"{group}/{name}": hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for group, tensors in found.tensors.items()
        for name, tensor in ((name, tensor.reshape(-1)) for name, tensor in tensors.items())
    }
    progress = {name: value for name, value in found.state["progress"].items() if name not in TIMINGS}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]
    adapter = hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    return {"step": found.step, "tensors": digests, "progress": progress, "metrics": metrics, "adapter": adapter}


def main(root, kills):
    torch.set_num_threads(1)
    chance = random.Random(20)
    started = time.perf_counter()
    killed_after(root / "whole", None)
    duration = time.perf_counter() - started
    expected = outcome(root / "whole")
    landed, runs, different = 0, 0, []
    while landed < kills:
        folder = root / f"run-{runs}"
        runs += 1
        while killed_after(folder, chance.uniform(0, duration)):
            landed += 1
        found = outcome(folder)
        different += [f"{folder.name}: {part}" for part in expected if found[part] != expected[part]]
    groups = sorted({name.partition("/")[0] for name in expected["tensors"]})
    told = {"kills": landed, "runs": runs, "different": different, "groups": groups}
    print(json.dumps({**told, "steps": expected["step"], "lines": len(expected["metrics"])}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
