"""The training loop: an attached model, a task and rows go in; a trained adapter, its metrics and checkpoints come out.

Everything that a step depends on is a pure function of (data, config, seed, step) or is held by a checkpoint, so a run
that is killed at any instant and resumed ends with the same bits.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorica.budget import Workload
from lorica.data import Dataset, Example, Schedule
from lorica.data import steps as schedule_of
from lorica.errors import ROUNDING, WHAT_FITS, DivergedError, NoRoomError, RequestError, RunError
from lorica.kernels import pooled
from lorica.kernels.elsewhere import Store
from lorica.models import fetched_layers, generators
from lorica.tasks import Task
from lorica.tasks.padded import batches
from lorica.train import memory
from lorica.train.checkpoint import Checkpoint
from lorica.train.config import TrainConfig, unevaluated
from lorica.train.interrupt import Interruption
from lorica.train.loss_scale import LossScale
from lorica.train.optimizers import optimizer
from lorica.train.paging import OnCpu, Paged
from lorica.train.progress import Progress
from lorica.train.recomputing import machine_of, recomputing, workload
from lorica.train.records import EvalRecord, Run, Status, StepRecord
from lorica.train.rehearsal import rehearse
from lorica.train.reporter import Quiet, Reporter, Several
from lorica.train.room import Room, compared, evaluated
from lorica.train.run_folder import RunFolder
from lorica.train.schedule import learning_rate, unmet_peak
from lorica.train.step import Learner, Taken, optimiser_step

if TYPE_CHECKING:
    from lorica.adapter import Attached

MEMORY_EVERY = 10
FREE_TO_CHANGE = {
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "gradient_checkpointing",
    "page_state",
    "offload_activations",
    "measure",
}
"""Settings that leave every number of a run as it is, so that a resumed run may have others."""


def fit(
    attached: "Attached",
    task: Task,
    train: Dataset,
    eval: Dataset | None,  # noqa: A002  the word of recipes
    config: TrainConfig,
    *,
    folder: Path | None = None,
    seed: int | None = None,
    reporter: Reporter | None = None,
    resume: bool = False,
    finish: bool = False,
    identity: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    before: Callable[[], Mapping[str, Any]] | None = None,
    room: Room | None = None,
    recipe: str | None = None,
    began: datetime | None = None,
) -> Run:
    """Trains `attached` in place; afterwards it holds the best evaluated adapter, else the last one.

    folder    the run folder; None keeps nothing on the disk.  resume goes on from its newest checkpoint that verifies
    finish    takes no step: the adapter of that checkpoint is the run's, the best evaluated so far, else the last
    seed      of the order of rows and of dropout; None: config.seed
    identity  what makes a resume wrong when it changes (the base's fingerprint, the method); config and data are added
    before    scores the base itself on `eval`, which is written as the line of step 0
    facts     handed to `attached.save` for the adapter folder
    room      what the caller has found; None: what the config and the folder say
    recipe    the text that the folder keeps as recipe.yaml, where the run begins
    began     the date that rows were written with, which the folder keeps likewise

    RequestError when the folder holds a run, the method has no room in so few steps, or patience waits for evaluations
    that nobody makes; CheckpointError when it is another one; NoRoomError before the first step where the run does not
    fit; DivergedError when a loss or gradient is not finite.  Ctrl-C and SIGTERM finish the step, save, and give a Run
    with status "interrupted".
    """
    if config.patience is not None and eval is None:
        raise RequestError(unevaluated(config.patience))
    seed = config.seed if seed is None else seed
    if finish and folder is None:
        raise RequestError("finish: a run without a folder has no checkpoint to make an adapter of; name its output")
    if attached.life is not None:
        attached.life.begin(len(_schedule(train, config, seed)))
    reporter = reporter or Quiet()
    room = room or Room.of(config, train, eval, folder=folder, resume=resume, reporter=reporter)
    if task.compares and not finish:
        with attached.off() as base:
            train = compared(task, base, train, room)
            eval = None if eval is None else compared(task, base, eval, room)  # noqa: A001
    with ExitStack() as stack:
        stack.enter_context(pooled(device_of(attached)))
        place = None
        if folder is not None:
            whole = _identity(identity or {}, attached, task, train, eval, config, seed)
            place = RunFolder(
                folder,
                resume=resume,
                finish=finish,
                identity=whole,
                keep=config.keep_checkpoints,
                recipe=recipe,
                began=began,
            )
            stack.enter_context(place)
        trainer = Trainer(attached, task, train, eval, config, seed=seed, place=place, room=room)
        trainer.begin(stack)
        if finish:
            return trainer.kept(facts or {})
        stack.enter_context(memory.no_slow_products())
        if config.measure:
            rehearse(trainer)
        if before is not None:
            trainer.note_base(before)
        wish = stack.enter_context(Interruption())
        trainer.train(wish)
        return trainer.finish(wish, facts or {})


@contextmanager
def trying(
    attached: "Attached", task: Task, train: Dataset, held_out: Dataset | None, config: TrainConfig, room: Room
) -> Iterator["Trainer"]:
    """A run that is ready for its first step and keeps nothing."""
    if attached.life is not None:
        attached.life.begin(len(_schedule(train, config, config.seed)))
    with ExitStack() as stack:
        stack.enter_context(pooled(device_of(attached)))
        trainer = Trainer(attached, task, train, held_out, config, seed=config.seed, place=None, room=room)
        trainer.begin(stack)
        yield trainer


def device_of(attached: "Attached") -> torch.device:
    return next(attached.model.parameters()).device


class Trainer:
    """A run between its first step and its last."""

    def __init__(
        self,
        attached: "Attached",
        task: Task,
        train: Dataset,
        held_out: Dataset | None,
        config: TrainConfig,
        *,
        seed: int,
        place: RunFolder | None,
        room: Room,
    ) -> None:
        self.attached, self.task, self.data, self.held_out = attached, task, train, held_out
        self.config, self.place, self.room, self.reporter = config, place, room, room.reporter
        self.schedule = _schedule(train, config, seed)
        self.total = len(self.schedule)
        self.groups = config.rates.groups(attached.plan)
        self.device = device_of(attached)
        self.paged = None if config.page_state is None else Paged(config.page_state, self._store)
        self.learner = Learner(
            model=attached.model,
            task=task,
            optimizer=optimizer(
                config.optimizer,
                dict(attached.named_parameters()),
                factors={key: group.factor for group in self.groups for key in group.keys},
                roles={key: tensor.role for key, tensor in attached.plan.tensors.items()},
                state=self.paged,
            ),
            seed=seed,
            device=self.device,
            clip=config.clip,
            life=attached.life,
            scale=LossScale.of(attached.model),
        )
        self.work = Workload()
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self._warned = False

    @cached_property
    def _store(self) -> Store:
        """Room beside the device: where it is the CPU in the run folder, which has the room that checkpoints need."""
        return Store(self.device, None if self.place is None else self.place.path)

    def begin(self, stack: ExitStack) -> None:
        """Ready for the first step, or for the first after the checkpoint that is gone on from."""
        self.work = self._workload()
        store = self._store if self.config.offload_activations else None
        stack.enter_context(recomputing(self.attached, self.work.recomputed, store))
        if self.config.base_dropout:
            torch.manual_seed(self.learner.seed)
        if self.place is not None:
            self._resume(self.place)
            self._add_tensorboard(stack, self.place)
        if told := unmet_peak(self.config, self.total):
            self.reporter.on_note(told)
        self.reporter.on_plan(self.total, self.progress.step, self.schedule.epoch_of(self.total - 1))
        self.learning_mode(self.config.base_dropout)
        stack.callback(self.attached.eval)

    def _workload(self) -> Workload:
        """Of the largest micro-batch; said where blocks are recomputed and nobody asked for it."""
        attached, longest = self.attached, int(max(self.data.lengths))
        machine = machine_of(attached.model)
        work = workload(self.config, attached.plan, attached.model, longest, machine, fetched_layers(attached.model))
        blocks = work.recomputed
        if self.config.gradient_checkpointing == "auto" and blocks != 0:
            told = "all blocks are" if blocks is None else f"{blocks} blocks are"
            self.reporter.on_note(f"{told} computed again in the backward pass, to fit into {machine}")
        return work

    def note_base(self, scored: Callable[[], Mapping[str, Any]]) -> None:
        """The line of step 0, of a run that begins: it outlives the lines after it when it is resumed."""
        if not self.progress.step:
            self.attached.eval()
            score = scored()
            self.learning_mode(self.config.base_dropout)
            metrics = {name: value for name, value in score.items() if name != "loss"}
            self._write({"step": 0, "epoch": 0.0, "eval_loss": score["loss"], **metrics})

    def train(self, wish: Interruption) -> None:
        try:
            self._train(wish)
        except DivergedError as error:
            raise DivergedError(f"{error}{self._how_to_keep()}") from error

    def _train(self, wish: Interruption) -> None:
        while not self.done and not wish.made:
            self._learn()
            if self._due(self.config.evaluate_every) and self.held_out is not None:
                self._evaluate(self.held_out)
            if self.place is not None and (wish.made or self._due(self.config.checkpoint_every)):
                self._save(self.place)

    def finish(self, wish: Interruption, facts: Mapping[str, Any]) -> Run:
        if wish.made and not self.done:
            self._say_how_to_resume(wish.made)
            return self._outcome("interrupted", None)
        return self.kept(facts)

    def kept(self, facts: Mapping[str, Any]) -> Run:
        """The end, whether all steps were taken or not: the adapter that was best so far, else the last."""
        if self.progress.best:
            self.attached.load_state(self.progress.best)
        if reason := self.attached.unfinished():
            over = "over" if self.done else f"to be resumed (it has {self.total} steps)"
            raise RunError(f"step {self.progress.step}: the run is {over}, and no adapter of it is kept: {reason}")
        adapter = None if self.place is None else self.place.adapter
        if adapter is not None:
            known = {"data": self.data.fingerprint, "metrics": self._metrics()}
            cut = {"step": known["metrics"]["step"], "after": self.progress.step, "of": self.total}
            cut = {} if self.done else {"cut_short": cut}
            self.attached.save(adapter, **{**known, **cut, **facts})
        whole: Status = "finished" if self.done else "cut short"
        return self._outcome("stopped early" if self.progress.stopped else whole, adapter)

    @property
    def done(self) -> bool:
        return self.progress.stopped or self.progress.step >= self.total

    def _due(self, every: int | str) -> bool:
        """After the step just taken; always after the last."""
        step = self.progress.step
        if self.done:
            return True
        if every == "epoch":
            return self.schedule.place(step)[0] != self.schedule.place(step - 1)[0]
        return step % int(every) == 0

    def parts(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The micro-batches of a step."""
        return batches(self.attached.model, self.schedule[step - 1], self.data.lengths, self.room.tokens)

    def _learn(self) -> None:
        step, started = self.progress.step + 1, time.perf_counter()
        rate = learning_rate(self.config, step, self.total)
        taken = self.taken(step, rate)
        seconds = time.perf_counter() - started
        record = StepRecord(
            step=step,
            epoch=self.schedule.epoch_of(step - 1),
            loss=taken.loss,
            tokens=taken.tokens,
            label_tokens=taken.units,
            learning_rate=rate,
            learning_rates=self._rates(rate),
            grad_norm=taken.grad_norm,
            seconds=seconds,
            tokens_per_second=taken.tokens / seconds,
            memory_bytes=memory.used_bytes(self.learner.device),
            pages=self._pages(),
        )
        self.progress.stepped(record)
        self._write(record.to_dict())
        self.reporter.on_step(record)
        self._notice(taken.grad_norm)

    def _pages(self) -> dict[str, int] | None:
        """Of the optimiser's state, moved since this process began."""
        return None if self.paged is None else {"in": self.paged.pages_in, "out": self.paged.pages_out}

    def taken(self, step: int, rate: float) -> Taken:
        """The step, in smaller micro-batches from here on where memory runs out: the same step but for rounding."""
        while True:
            rows = [[self.data[index] for index in part] for part in self.parts(step)]
            try:
                return optimiser_step(self.learner, rows, step=step, total=self.total, learning_rate=rate)
            except NoRoomError as error:
                self.room.cut(self.smaller(rows, error))
                memory.give_back(self.learner.device)

    def smaller(self, rows: Sequence[Sequence[Example]], error: NoRoomError) -> int:
        """Half of the largest micro-batch that can be cut.  NoRoomError where each holds one row."""
        largest = max((sum(map(len, part)) for part in rows if len(part) > 1), default=0)
        if not largest:
            longest = max(sum(map(len, part)) for part in rows)
            kept = "" if self.place is None else f"; what was saved stands, {self.place.how_to('resume')} goes on"
            raise NoRoomError(
                f"{error} with a single row of {longest:,} tokens; set train.gradient_checkpointing: true or "
                f"model.quantize: nf4, or lower data.max_length ({WHAT_FITS}){kept}"
            ) from None
        most = max(min(largest, self.room.tokens) // 2, 1)
        self.reporter.on_note(f"{error} with {largest:,} tokens at a time; going on with {most:,}, {ROUNDING}")
        return most

    def _rates(self, rate: float) -> dict[str, float] | None:
        """Of each group, where there are several."""
        rates = {group.label: rate * group.factor for group in self.groups}
        return rates if len(rates) > 1 else None

    def _evaluate(self, held_out: Dataset) -> None:
        started = time.perf_counter()
        self.attached.eval()
        metrics = evaluated(
            self.task, self.attached.model, held_out, self.room, f"evaluation of step {self.progress.step}"
        )
        self.learning_mode(self.config.base_dropout)
        loss = metrics.pop("loss")
        if not math.isfinite(loss):
            raise DivergedError(f"step {self.progress.step}: the evaluation loss is not finite; lower learning_rate")
        finished = self.attached.unfinished() is None
        best = finished and self.progress.better(loss)
        record = EvalRecord(
            step=self.progress.step,
            epoch=self.schedule.epoch_of(self.progress.step - 1),
            eval_loss=loss,
            metrics=metrics,
            best=best,
        )
        self.progress.evaluated(
            record, self._adapter_state() if best else None, self.config.patience if finished else None
        )
        self.progress.seconds += time.perf_counter() - started
        self._write(record.to_dict())
        self.reporter.on_eval(record)

    def _adapter_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.attached.state().items()}

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.place is None:
            self.history.append(dict(line))
        else:
            self.place.record(line)

    def _save(self, place: RunFolder) -> None:
        life = self.learner.life
        tensors = {
            "adapter": self._adapter_state(),
            "start": {name: tensor.cpu().contiguous() for name, tensor in self.attached.start().items()},
            "optimizer": OnCpu(self.learner.optimizer.state()),
            "best": self.progress.best,
            "life": {} if life is None else {name: tensor.cpu() for name, tensor in life.state_dict().items()},
            "generators": generators.states(),
        }
        state = {"progress": self.progress.state(), "loss_scale": vars(self.learner.scale)}
        place.save(self.progress.step, tensors, state)

    def learning_mode(self, base_dropout: bool) -> None:
        """Adapter modules learn; the base's own dropout, which follows no law of ours, is off unless asked for."""
        self.attached.model.train(base_dropout)
        self.attached.train(base=False)

    def _resume(self, place: RunFolder) -> None:
        for folder, reason in place.skipped:
            self.reporter.on_note(f"{folder}: not used, {reason}")
        if place.start is not None:
            self._restore(place.start)
        elif place.resume:
            self.reporter.on_note(f"{place.path}: no checkpoint yet, so the run begins at its first step")

    def _restore(self, start: Checkpoint) -> None:
        self.attached.load_state(start.tensors["adapter"])
        self.attached.load_start(start.tensors.get("start", {}))
        self.learner.optimizer.load_state(start.tensors.get("optimizer", {}))
        if self.learner.life is not None:
            self.learner.life.load_state_dict(start.tensors.get("life", {}))
        vars(self.learner.scale).update(start.state["loss_scale"])
        self.progress = Progress.of(start.state["progress"], start.tensors.get("best", {}))
        generators.restore(start.tensors["generators"])

    def _add_tensorboard(self, stack: ExitStack, place: RunFolder) -> None:
        if self.config.tensorboard:
            from lorica.train.tensorboard import TensorBoard

            board = TensorBoard(place.path / "tensorboard", self.progress.step)
            stack.callback(board.close)
            self.reporter = Several((self.reporter, board))

    def _notice(self, grad_norm: float | None) -> None:
        if grad_norm is None:
            scale = self.learner.scale
            self.reporter.on_note(
                f"step {self.progress.step}: gradients overflowed float16, so the step was skipped "
                f"({scale.skipped} so far); the loss scale is now {scale.scale:g}"
            )
        if not self._warned and self.progress.step % MEMORY_EVERY == 1:
            warning = memory.shortage(self.learner.device)
            self._warned = warning is not None
            if warning:
                self.reporter.on_note(warning)

    def _say_how_to_resume(self, signal: str) -> None:
        done = f"{signal}: stopped after step {self.progress.step} of {self.total}"
        if self.place is None:
            self.reporter.on_note(f"{done}; nothing is on the disk, since the run has no folder")
        else:
            on = self.place.how_to("resume")
            self.reporter.on_note(f"{done}, saved in {self.place.path}; continue with {on}{self._how_to_keep()}")

    def _how_to_keep(self) -> str:
        """Nothing before the method has ended: no adapter is made then."""
        return "" if self.place is None or self.attached.unfinished() else self.place.how_to_keep()

    def _metrics(self) -> dict[str, Any]:
        """Of the adapter that is kept."""
        kept = self.progress.best_eval or {"step": self.progress.step}
        lines = self.history if self.place is None else self.place.history
        taught = [line["loss"] for line in lines if line["step"] == kept["step"] and "loss" in line]
        return {**kept, "loss": taught[-1] if taught else self.progress.loss}

    def _outcome(self, status: Status, adapter: Path | None) -> Run:
        progress = self.progress
        return Run(
            status=status,
            adapter=None if adapter is None else str(adapter),
            steps=progress.step,
            total_steps=self.total,
            best_step=progress.best_step if progress.best else progress.step,
            loss=progress.loss,
            eval=progress.best_eval,
            seconds=progress.seconds,
            tokens_per_second=progress.tokens / progress.seconds if progress.seconds else 0.0,
            peak_bytes=memory.peak_bytes(self.learner.device),
            skipped_steps=self.learner.scale.skipped,
            pages=self._pages(),
            history=tuple(self.history if self.place is None else self.place.history),
        )


def _schedule(train: Dataset, config: TrainConfig, seed: int) -> Schedule:
    return schedule_of(
        train.lengths,
        rows_per_step=config.rows_per_step,
        tokens_per_step=config.tokens_per_step,
        epochs=config.epochs,
        steps=config.steps,
        seed=seed,
    )


def _identity(
    given: Mapping[str, Any],
    attached: "Attached",
    task: Task,
    train: Dataset,
    held_out: Dataset | None,
    config: TrainConfig,
    seed: int,
) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude=FREE_TO_CHANGE)
    return {
        **given,
        "method": [{"name": method.kind, **method.model_dump(mode="json")} for method in attached.plan.methods],
        **{f"train.{name}": value for name, value in settings.items()},
        "train.seed": seed,
        "task": task.to_entry(),
        "data.train": train.fingerprint,
        "data.eval": None if held_out is None else held_out.fingerprint,
    }
