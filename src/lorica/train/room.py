"""Room: the tokens that a run computes at a time, fewer than its recipe says once memory has run out.

    tokens -> max(tokens / 2, longest row) -> ... -> longest row        after which nothing is smaller

What is computed stays the same but for rounding.  `room.json` in the run folder keeps it for the run that goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lorica import durable
from lorica.data import Dataset
from lorica.errors import ROUNDING, WHAT_FITS, NoRoomError, how_memory_ran_out, is_out_of_memory
from lorica.tasks import Task
from lorica.train import memory
from lorica.train.config import TrainConfig
from lorica.train.reporter import Reporter

FILE = "room.json"
KEY = "micro_batch_tokens"
Found = TypeVar("Found")


@dataclass
class Room:
    """tokens: of a micro-batch at most; largest: of a step; longest: of a row; folder: of the run, where it has one."""

    tokens: int
    largest: int
    longest: int
    folder: Path | None
    reporter: Reporter

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        train: Dataset,
        held_out: Dataset | None = None,
        *,
        folder: Path | None = None,
        resume: bool = False,
        reporter: Reporter,
    ) -> "Room":
        """What the config says; for a run that is gone on with, what its folder keeps where that is less."""
        longest = int(max(max(rows.lengths, default=1) for rows in (train, held_out) if rows is not None))
        known = kept(folder) if resume and folder is not None else None
        tokens = min(config.micro_batch_tokens, known or config.micro_batch_tokens)
        room = cls(tokens, config.at_once(longest), longest, folder, reporter)
        room._report()
        return room

    def cut(self, tokens: int) -> None:
        """From here on, and in runs that go on with this one."""
        self.tokens = tokens
        if self.folder is not None:
            keep(self.folder, tokens)
        self._report()

    def within(self, what: str, rows: Dataset, device: torch.device, work: Callable[[int], Found]) -> Found:
        """`work(tokens)` over rows, in smaller micro-batches where memory runs out.  NoRoomError where none are."""
        while True:
            try:
                with memory.no_slow_products(), memory.products_stay_fast():
                    return work(self.tokens)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                told = how_memory_ran_out(error)
            # outside of the handler: the error's frames hold what there was no room for
            memory.give_back(device)
            longest, largest = int(max(rows.lengths)), min(self.tokens, int(sum(rows.lengths)))
            less = smaller(largest, longest)
            if less is None:
                raise NoRoomError(f"{what}: {told} with a single row of {longest:,} tokens; {WHAT_FITS}")
            self.reporter.on_note(
                f"{what}: {told} with {largest:,} tokens at a time; going on with {less:,}, {ROUNDING}"
            )
            self.cut(less)

    def _report(self) -> None:
        self.reporter.on_room(self.tokens, smaller(min(self.tokens, self.largest), self.longest))


def evaluated(task: Task, model: nn.Module, rows: Dataset, room: Room, what: str) -> dict[str, float]:
    """`task.evaluate`, in smaller micro-batches where memory runs out."""
    device = next(model.parameters()).device
    return room.within(what, rows, device, lambda tokens: task.evaluate(model, rows, micro_batch_tokens=tokens))


def compared(task: Task, base: nn.Module, rows: Dataset, room: Room) -> Dataset:
    """`task.compared`, likewise."""
    device = next(base.parameters()).device
    return room.within("base", rows, device, lambda tokens: task.compared(base, rows, micro_batch_tokens=tokens))


def smaller(tokens: int, longest: int) -> int | None:
    """Half as many tokens at a time; None where every row is by itself already."""
    return max(tokens // 2, longest) if tokens > longest else None


def keep(folder: Path, tokens: int) -> None:
    durable.write_json(folder / FILE, {KEY: tokens})


def kept(folder: Path) -> int | None:
    """Tokens at a time that the run in a folder has had room for; None where memory never ran out."""
    path = folder / FILE
    return int(durable.read_json(path)[KEY]) if path.exists() else None


def forget(folder: Path) -> None:
    """For a run that begins anew."""
    if (folder / FILE).exists():
        durable.remove(folder / FILE)
