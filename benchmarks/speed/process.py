"""A side as the run sees it: a process that takes steps when it is told to, and is idle otherwise."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHOWN = 12


class SideError(RuntimeError):
    """A side that could not do what it was told, with the end of what it said."""


class Worker:
    """One side.  It loads while others do; `ready` are the facts it tells when it has."""

    def __init__(self, name: str, order: Mapping[str, Any], log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "benchmarks.speed.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=_environment(order.get("environment", {})),
            )
        self._say(order)

    @cached_property
    def ready(self) -> dict[str, Any]:
        return self._hear()["ready"]

    def steps(self, count: int, *, forget_peak: bool = False) -> dict[str, Any]:
        assert self.ready
        self._say({"steps": count, "forget_peak": forget_peak})
        return self._hear()

    def close(self) -> None:
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def _say(self, order: Mapping[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"failed": "the process ended"}
        if "failed" in answer:
            self.close()
            last = "\n".join(self.log.read_text().splitlines()[-SHOWN:])
            raise SideError(f"{self.name}: {answer['failed']}\n{last}")
        return answer


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    threads = str(os.cpu_count() or 1)
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true"}
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": paths, **quiet, **more}
