"""Memory that runs out: the same step or evaluation in smaller parts, or one line and nothing lost."""

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from campaign.tiny_run import base, dataset
from lorica.adapter import attach
from lorica.errors import ModelError, NoRoomError, is_out_of_memory
from lorica.methods import LoRA
from lorica.tasks import Task
from lorica.tasks.causal_lm import CausalLanguageModelling
from lorica.train import TrainConfig, fit, memory, room
from lorica.train.reporter import Quiet

ERRORS = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "allocator": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
    "oneDNN": lambda: RuntimeError("could not create a primitive"),
}


class Notes(Quiet):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def cramped(most: int, error: Any, tried: list[int]) -> Task:
    task = CausalLanguageModelling()
    real = task.loss

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        tokens = batch.layout.total
        tried.append(tokens)
        value = real(model, batch)
        if tokens > most:
            value.register_hook(lambda grad: (_ for _ in ()).throw(error()))
        return value

    object.__setattr__(task, "loss", loss)
    return task


def run(task: Task, **settings: Any) -> tuple[dict[str, torch.Tensor], list[float], list[str]]:
    attached = attach(base().double(), LoRA(r=3, dropout=0.1), seed=1)
    told = Notes()
    config = TrainConfig(**{"steps": 4, "rows_per_step": 6, "learning_rate": 1e-2, **settings})
    done = fit(attached, task, dataset(), None, config, reporter=told)
    return attached.state(), [line["loss"] for line in done.history if "loss" in line], told.notes


@pytest.mark.parametrize("kind", ERRORS)
def test_a_step_that_does_not_fit_is_taken_in_smaller_parts(kind: str) -> None:
    tried: list[int] = []
    free, losses, _ = run(CausalLanguageModelling())
    small, again, notes = run(cramped(40, ERRORS[kind], tried))
    # four steps of double precision from sums in another order
    assert again == pytest.approx(losses, rel=1e-10)
    largest = max(tensor.abs().max() for tensor in free.values())
    assert all((free[key] - small[key]).abs().max() <= 1e-9 * largest for key in free)
    assert max(tried) > 40
    assert any("out of memory" in note and "tokens at a time; going on with" in note for note in notes)
    last = next(place for place, tokens in reversed(list(enumerate(tried))) if tokens > 40)
    assert len(tried) - last > 8, "later steps are not tried whole again"


def test_a_row_that_does_not_fit_ends_the_run_and_leaves_what_was_saved(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, rows_per_step=6, learning_rate=1e-2, checkpoint_every=1, measure=False)
    room = [10_000, 10_000, 1]
    tried: list[int] = []
    task = cramped(1, MemoryError, tried)
    generous, calls = CausalLanguageModelling(), iter(room)
    attached = attach(base(), LoRA(r=3), seed=1)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return (task if next(calls, 1) == 1 else generous).loss(model, batch)

    third = CausalLanguageModelling()
    object.__setattr__(third, "loss", loss)
    with pytest.raises(NoRoomError, match=r"step 3: out of memory with a single row of .* goes on") as caught:
        fit(attached, third, dataset(), None, config, folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 1
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000002"
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_long_row_beside_short_ones_is_no_endless_loop() -> None:
    """The longest is alone from the beginning; the others are cut until each is alone too."""
    with pytest.raises(NoRoomError, match="single row"):
        run(cramped(1, MemoryError, []), micro_batch_tokens=8)


def test_another_error_is_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"):
        run(cramped(1, lambda: RuntimeError("something else"), []))


WORDS = (
    RuntimeError("std::bad_alloc"),
    RuntimeError("unable to mmap 14923840 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError(12, "Cannot allocate memory"),
    SystemError("error return without exception set"),
    SystemError("<built-in function loads> returned NULL without setting an exception"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)
OTHERS = (
    RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(28, "No space left"),
    KeyError("memory"),
)


def test_an_allocation_that_failed_is_known_by_its_words_and_in_what_came_of_it() -> None:
    assert [error for error in WORDS if not is_out_of_memory(error)] == []
    assert [error for error in OTHERS if is_out_of_memory(error)] == []
    wrapped = ModelError("config.json: not readable")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    meanwhile = KeyError("x")
    meanwhile.__context__ = MemoryError()
    assert is_out_of_memory(meanwhile)
    meanwhile.__suppress_context__ = True
    assert not is_out_of_memory(meanwhile), "raised from None, it has no other cause"


def scored(most: int, held: Any, tried: list[int], **settings: Any) -> tuple[dict[str, Any], list[str]]:
    """The evaluation line of a run whose evaluations hold `most` tokens at a time."""
    task = CausalLanguageModelling()
    real = task.loss

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            tried.append(batch.layout.total)
            if batch.layout.total > most:
                raise MemoryError
        return real(model, batch)

    object.__setattr__(task, "loss", loss)
    attached, told = attach(base().double(), LoRA(r=3, dropout=0.1), seed=1), Notes()
    config = TrainConfig(steps=2, rows_per_step=6, learning_rate=1e-2, evaluate_every=2)
    done = fit(attached, task, dataset(), held, config, reporter=told, **settings)
    return next(dict(line) for line in done.history if "eval_loss" in line), told.notes


def test_an_evaluation_that_does_not_fit_is_made_in_smaller_parts(tmp_path: Path) -> None:
    held, tried = dataset(9, seed=2), []
    free, _ = scored(10_000, held, [])
    small, notes = scored(20, held, tried, folder=tmp_path / "run")
    assert small["eval_loss"] == pytest.approx(free["eval_loss"], rel=1e-10)
    assert {**small, "eval_loss": 0, "perplexity": 0} == {**free, "eval_loss": 0, "perplexity": 0}
    assert max(tried) > 20
    assert any(note.startswith("evaluation of step 2: out of memory with") for note in notes)
    assert json.loads((tmp_path / "run/room.json").read_text())["micro_batch_tokens"] <= 20


def test_an_evaluation_whose_longest_row_does_not_fit_ends_the_run() -> None:
    held = dataset(9, seed=2)
    with pytest.raises(NoRoomError, match=rf"single row of {max(held.lengths)} tokens; lorica plan RECIPE --fit"):
        scored(2, held, [])


class Stopped(Quiet):
    """Ctrl-C at the first step."""

    def on_step(self, record: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_goes_on_keeps_to_what_there_was_room_for_and_a_new_one_does_not(tmp_path: Path) -> None:
    config = TrainConfig(steps=3, rows_per_step=6, learning_rate=1e-2)

    def largest(**words: Any) -> int:
        tried: list[int] = []
        fit(attach(base(), LoRA(r=3), seed=1), cramped(999, MemoryError, tried), dataset(), None, config, **words)
        return max(tried)

    folder, longest = tmp_path / "run", int(max(dataset().lengths))
    room.keep(folder, longest)
    assert largest(folder=folder, reporter=Stopped()) > longest, "a run that begins knows of no lack"
    assert not (folder / room.FILE).exists()
    room.keep(folder, longest)
    assert largest(folder=folder, resume=True) <= longest


def test_half_as_many_until_the_longest_row_is_alone() -> None:
    assert [room.smaller(tokens, 500) for tokens in (8192, 1200, 700, 500, 300)] == [4096, 600, 500, None, None]


def test_products_stay_fast_after_one_had_no_room() -> None:
    """torch's own answer to it: a warning, and oneDNN is off from there on."""
    with memory.products_stay_fast():
        torch._C._set_mkldnn_enabled(False)
    assert torch.backends.mkldnn.enabled
    with memory.no_slow_products(), pytest.raises(UserWarning, match="primitive") as caught:
        warnings.warn("mkldnn_matmul failed, switching to baddbmm:could not create a primitive (at x)", stacklevel=1)
    assert is_out_of_memory(caught.value)
