"""measure: what the heaviest batch of a recipe takes, in a process of its own, so that nothing else counts.

here                                  there, a fresh process
recipe as JSON  ---- its stdin ---->  base, data, adapter; two optimiser steps and an evaluation batch
Measurement     <--- its stdout ----  what was held and how long it took, or what was wrong, as JSON
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lorica
from lorica import budget, errors
from lorica.api.fitting import advised
from lorica.api.planning import drawn, require_room
from lorica.budget import Measured, Measurement
from lorica.errors import LoricaError, NoRoomError, RunError
from lorica.recipe import Recipe

CHILD = "lorica.api.rehearsal_process"
PACKAGES = Path(lorica.__file__).parents[1]


def measure(recipe: Recipe) -> Measurement:
    """The forecast of the heaviest batch beside what it takes, which corrects later forecasts on this machine.

    Raises what a run of the recipe would: `NoRoomError` where it does not fit, `ModelError` without weights.
    """
    with advised(recipe):
        require_room(recipe)
        measured = Measured.of(_answered(_run_child(recipe)))
    draft = drawn(recipe)
    forecast = draft.forecast(draft.place(), measured.work, corrected=False)
    place = budget.remember(draft.key(), budget.difference(forecast, measured))
    kept = f"kept in {place}: it corrects later plans on this machine"
    return Measurement(forecast=forecast, measured=measured, kept=kept)


def _run_child(recipe: Recipe) -> "subprocess.CompletedProcess[str]":
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-m", CHILD],
        input=json.dumps(recipe.to_dict()),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


def _answered(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """What the child says.  Its own error where it says that; RunError in one line where it said nothing."""
    if done.returncode == 0:
        answer = json.loads(done.stdout)
        if "measured" in answer:
            return answer["measured"]
        raise _error(answer["error"], answer["told"])
    *_, last = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    if done.returncode == -signal.SIGKILL:
        raise NoRoomError("does not fit: the measuring process was killed, as the system does where memory runs out")
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    raise RunError(f"the measuring process ended by {ended}: {last.strip()}")


def _error(name: str, told: str) -> LoricaError:
    kind = getattr(errors, name, RunError)
    return kind(told) if isinstance(kind, type) and issubclass(kind, LoricaError) else RunError(told)
