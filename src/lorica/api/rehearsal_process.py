"""The process that measures: a recipe on stdin, what its heaviest batch takes on stdout.  Nothing is written.

It offers itself first where the system ends processes for their memory.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorica.errors import LoricaError


def main() -> None:
    """Whatever else writes to stdout, libraries among them, goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        answer: dict[str, Any] = {"measured": _measured(json.load(sys.stdin))}
    except LoricaError as error:
        answer = {"error": type(error).__name__, "told": str(error)}
    with answers:
        json.dump(answer, answers)


def _measured(tree: dict[str, Any]) -> dict[str, Any]:
    from lorica.api.training import measured
    from lorica.recipe import Recipe

    return asdict(measured(Recipe(**tree)))


if __name__ == "__main__":
    main()
