"""A run tried before it starts: what does not fit is refused in the first minute, not in the third hour.

    rehearse    in the run itself: the gradients of its heaviest micro-batch are made and thrown away
    measure     in a process that does nothing else: two optimiser steps and an evaluation batch, with all they hold

The heaviest micro-batch is the one of most tokens, padding included.
"""

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from lorica.budget import Measured, require_room, spoken
from lorica.budget.elsewhere import on_device
from lorica.budget.memory import gigabytes
from lorica.data import Dataset
from lorica.errors import NoRoomError
from lorica.models import generators
from lorica.models.causal_lm import CausalLM
from lorica.tasks.padded import batches_by_length, computed
from lorica.train import memory
from lorica.train.heaviest import heaviest
from lorica.train.recomputing import machine_of
from lorica.train.schedule import learning_rate
from lorica.train.step import clear, gradients

if TYPE_CHECKING:
    from lorica.train.loop import Trainer


def rehearse(trainer: "Trainer") -> None:
    """NoRoomError where the run does not fit.  Nothing that a step depends on is another afterwards.

    The method's own calls are left out, and the base's own dropout is off: in training mode a base may count what it
    sees.
    """
    if trainer.done:
        return
    _require_room(trainer)
    before, started = generators.states(), time.perf_counter()
    memory.trim(trainer.learner.device)
    trainer.learning_mode(base_dropout=False)
    _touch_state(trainer)
    tokens = _gradients(trainer)
    clear(trainer.learner.optimizer)
    memory.trim(trainer.learner.device)
    generators.restore(before)
    trainer.learning_mode(trainer.config.base_dropout)
    _tell(trainer, tokens, time.perf_counter() - started)


def _require_room(trainer: "Trainer") -> None:
    """By the forecast, with one row at a time: more of them are cut where memory runs out."""
    attached, longest = trainer.attached, trainer.work.length
    machine, decoder = machine_of(attached.model), isinstance(attached.model, CausalLM)
    work, moments = replace(trainer.work, tokens=longest), trainer.config.optimizer.elements
    needed = on_device(attached.plan, work, machine.kind, decoder, moments).peak
    require_room(needed, machine, f"a single row of {longest:,} tokens at a time")


def _touch_state(trainer: "Trainer") -> None:
    """The optimiser's, of which the system gives no page before its first step writes to it."""
    if trainer.work.page_state is None:
        for tensor in trainer.learner.optimizer.state().values():
            tensor.mul_(1)


def _gradients(trainer: "Trainer") -> int:
    """Left where they are.  The tokens they are of: fewer than were asked for where memory ran out."""
    while True:
        step, rows = _heaviest(trainer)
        examples = [trainer.data[index] for index in rows]
        try:
            gradients(replace(trainer.learner, life=None), [examples], step)
            return sum(map(len, examples))
        except NoRoomError as error:
            trainer.room.cut(trainer.smaller([examples], error))
            memory.give_back(trainer.learner.device)


def _heaviest(trainer: "Trainer") -> tuple[int, tuple[int, ...]]:
    model, lengths = trainer.attached.model, trainer.data.lengths
    return heaviest(trainer.schedule, trainer.parts, lambda part: computed(model, lengths[list(part)]))


def _tell(trainer: "Trainer", tokens: int, seconds: float) -> None:
    left = (trainer.total - trainer.progress.step) * _tokens_a_step(trainer)
    held = gigabytes(memory.peak_bytes(trainer.learner.device))
    run = spoken(left / tokens * seconds)
    trainer.reporter.on_note(
        f"the heaviest micro-batch, {tokens:,} tokens, fits, with {held} held so far; at its {seconds:.2g} s, a first "
        f"time's, the run takes {run}"
    )


def measure(trainer: "Trainer", base: int, start: int) -> Measured:
    """Two optimiser steps on the step of the heaviest micro-batch and an evaluation batch; the adapter learns.

    The second step is the one that is timed, and the first that holds all: the optimiser's state beside the
    activations.  start: bytes held before the base was loaded, base: those that it took.
    """
    learner, config = trainer.learner, trainer.config
    _require_room(trainer)
    memory.give_back(learner.device)
    memory.forget_peak(learner.device)
    step, rows = _heaviest(trainer)
    rate = learning_rate(config, 1, trainer.total)
    trainer.taken(step, rate)
    began = time.perf_counter()
    taken = trainer.taken(step, rate)
    seconds = time.perf_counter() - began
    scored = _scored(trainer)
    lengths = trainer.data.lengths[list(rows)]
    parameters = learner.optimizer.parameters.values()
    return Measured(
        context=start,
        weights=base,
        adapter=sum(tensor.nbytes for tensor in trainer.attached.state().values()),
        gradients=sum(parameter.nbytes for parameter in parameters),
        optimizer=sum(tensor.nbytes for tensor in learner.optimizer.state().values()),
        work=replace(trainer.work, tokens=int(lengths.sum()), length=int(lengths.max())),
        step_tokens=taken.tokens,
        step_seconds=seconds,
        steps=trainer.total,
        run_tokens=trainer.total * _tokens_a_step(trainer),
        eval_tokens=0 if scored is None else int(scored.lengths.sum()),
        eval_seconds=0.0 if scored is None else _score(trainer, scored),
        eval_run_tokens=_evaluated_tokens(trainer),
        peak=memory.most_held(learner.device, start),
    )


def _scored(trainer: "Trainer") -> Dataset | None:
    """The heaviest batch of an evaluation."""
    model, held_out = trainer.attached.model, trainer.held_out
    if held_out is None:
        return None
    parts = batches_by_length(model, held_out, trainer.config.micro_batch_tokens)
    rows = max(parts, key=lambda part: computed(model, held_out.lengths[list(part)]))
    examples = tuple(held_out[index] for index in rows)
    return replace(held_out, examples=examples, dropped=(), read=len(examples))


def _score(trainer: "Trainer", scored: Dataset) -> float:
    trainer.attached.eval()
    began = time.perf_counter()
    trainer.task.evaluate(trainer.attached.model, scored, micro_batch_tokens=trainer.config.micro_batch_tokens)
    return time.perf_counter() - began


def _evaluated_tokens(trainer: "Trainer") -> float:
    """Of all evaluations: the base's own, and those that are due."""
    if trainer.held_out is None:
        return 0.0
    every, total = trainer.config.evaluate_every, trainer.total
    often = trainer.schedule.epoch_of(total - 1) if every == "epoch" else total / int(every)
    return float(trainer.held_out.lengths.sum()) * (1 + math.ceil(often - 1e-9))


def _tokens_a_step(trainer: "Trainer") -> float:
    """In the mean over a pass."""
    return float(trainer.data.lengths.sum()) / len(trainer.schedule.epoch(0))
