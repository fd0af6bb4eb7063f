"""Where and how large a bench is run: the shape, the lessons, and what every order says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.lessons import Lessons
from benchmarks.speed.rounds import Length
from benchmarks.speed.shapes import CACHE, LLAMA_8B, SMOLLM2, TINY, Shape, checkpoint

COMMON: dict[str, Any] = {"method": "lora", "r": 8, "alpha": 16, "learning_rate": 2e-4}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """quick: a tiny shape and one round, to see that all sides run; nothing of it is kept."""

    shape: Shape = SMOLLM2
    dense_length: int = 512
    length: Length = field(default_factory=Length)
    quick: bool = False
    cache: Path = CACHE
    threads: int | None = None
    device: str = "cpu"
    only: tuple[str, ...] = ()

    @classmethod
    def here(cls) -> "Setting":
        """On a CUDA device, where there is one, Llama-3.1-8B's shape with 8k tokens a step."""
        import torch

        if torch.cuda.is_available():
            return cls(shape=LLAMA_8B, dense_length=2048, device="cuda")
        return cls()

    @classmethod
    def quickly(cls, cache: Path = CACHE, threads: int | None = None) -> "Setting":
        short = Length(warmup=1, rounds=1, timed=1)
        return cls(shape=TINY, dense_length=64, length=short, quick=True, cache=cache, threads=threads)

    def order(
        self, side: str, lessons: Lessons | None = None, shape: Shape | None = None, **more: Any
    ) -> dict[str, Any]:
        shape = shape or self.shape
        place = {} if lessons is None else {"lessons": str(self._written(lessons)), "folder": self.folder(shape)}
        environment = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**COMMON, "side": side, **place, "device": self.device, "environment": environment, **more}

    def folder(self, shape: Shape) -> str:
        return str(checkpoint(shape, self.cache))

    def chosen(self, orders: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those that `only` names; all where it names none."""
        return {name: order for name, order in orders.items() if not self.only or name in self.only}

    def _written(self, lessons: Lessons) -> Path:
        return lessons.write(self.cache / "lessons" / f"{lessons.name}.json")
