"""`python -m campaign.broken_train NAME train ...`: the command broken in one known way, in both of its processes.

Nothing is imported beside what the command itself would import: under a limit of memory that would be another command.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorica.cli import main
from lorica.cli.supervisor import Supervisor


def swallowing() -> None:
    """The supervisor says 0 whatever happened."""
    run = Supervisor.run

    def swallowed(self: Supervisor) -> int:
        run(self)
        return 0

    Supervisor.run = swallowed


def shrinking() -> None:
    """Rows by themselves, as where memory ran out before, and one fewer."""
    from lorica.train.loop import Trainer

    parts = Trainer._parts

    def fewer(self: Trainer, step: int) -> Any:
        self.room.cut(self.room.longest)
        return parts(self, step)[:-1]

    Trainer._parts = fewer


def tearing() -> None:
    """Checkpoints whose adapter is cut off once they have their name."""
    from lorica.train import checkpoint

    save = checkpoint.save

    def torn(root: Any, step: int, *rest: Any, **words: Any) -> Path:
        folder = save(root, step, *rest, **words)
        os.truncate(folder / "adapter.safetensors", 1000)
        return folder

    checkpoint.save = torn


BROKEN: dict[str, Callable[[], None]] = {
    "a supervisor that swallows the exit status": swallowing,
    "a batch that gets smaller with its micro-batches": shrinking,
    "checkpoints that are torn": tearing,
}

if __name__ == "__main__":
    BROKEN[sys.argv[1]]()
    sys.argv = ["lorica", *sys.argv[2:]]
    main()
