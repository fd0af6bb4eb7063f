"""What a step really held and how long it took, beside the forecast of it: `lorica plan --measure`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorica.budget.corrections import IN_THE_STEP, MUCH, SANE
from lorica.budget.forecast import Forecast
from lorica.budget.memory import Workload, gigabytes
from lorica.errors import NoRoomError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes that a fresh process, or its device, held, and seconds.

    context          after the imports, before the base is loaded
    weights          by how much loading the base grew the process, or what it holds on the device
    peak             the most while training and evaluating; loading left out
    work             of the heaviest micro-batch, whose longest row has `length` tokens
    step_tokens      of the optimiser step that it is a part of, and its seconds the second time
    eval_tokens      of an evaluation batch, 0 without evaluation data
    run_tokens       of all steps; eval_run_tokens: of all evaluations
    """

    context: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    peak: int
    work: Workload
    step_tokens: int
    step_seconds: float
    steps: int
    run_tokens: float
    eval_tokens: int = 0
    eval_seconds: float = 0.0
    eval_run_tokens: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Measured":
        """From `asdict`, by way of JSON."""
        return cls(**{**values, "work": Workload(**values["work"])})

    @property
    def in_the_step(self) -> int:
        held = self.context + self.weights + self.adapter + self.gradients + self.optimizer
        return max(self.peak - held, 0)

    @property
    def tokens_per_second(self) -> float:
        return self.step_tokens / self.step_seconds

    @property
    def run_seconds(self) -> float:
        """Of all steps and evaluations at the measured rates."""
        scored = self.eval_run_tokens * self.eval_seconds / self.eval_tokens if self.eval_tokens else 0.0
        return self.run_tokens / self.tokens_per_second + scored


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A forecast of exactly what was measured, what was measured, and where the difference is kept."""

    forecast: Forecast
    measured: Measured
    kept: str

    @property
    def fits(self) -> bool | None:
        return self.forecast.machine.holds(self.measured.peak)

    def require_room(self) -> None:
        """NoRoomError where what was measured is more than a run may plan for."""
        if self.fits is False:
            held = gigabytes(self.measured.peak)
            raise NoRoomError(f"does not fit: {held} measured, of {self.forecast.machine}")

    def parts(self) -> dict[str, tuple[int, int]]:
        """Forecast and measured bytes by part."""
        memory, held = asdict(self.forecast.memory), asdict(self.measured)
        same = {name: (memory[name], held[name]) for name in memory if name in held}
        step = (sum(memory[name] for name in IN_THE_STEP), self.measured.in_the_step)
        return {**same, "in the step": step, "peak": (self.forecast.memory.peak, self.measured.peak)}

    def to_dict(self) -> dict[str, Any]:
        found = self.measured
        return {
            **self.forecast.to_dict(),
            "fits": self.fits,
            "measured": {
                **{name.replace(" ", "_"): held for name, (_, held) in self.parts().items()},
                "micro_batch_tokens": found.work.tokens,
                "step_tokens": found.step_tokens,
                "step_seconds": found.step_seconds,
                "tokens_per_second": found.tokens_per_second,
                "run_seconds": found.run_seconds,
            },
            "kept": self.kept,
        }

    def __str__(self) -> str:
        found = self.measured
        head = f"measured on the heaviest micro-batch, {found.work.tokens:,} tokens, in a process of its own:"
        lines = [head, f"  {'':<12} {'forecast':>10} {'measured':>10}"]
        for name, sizes in self.parts().items():
            lines.append(f"  {name:<12} {gigabytes(sizes[0]):>10} {gigabytes(sizes[1]):>10}")
        ratio = self.measured.peak / self.forecast.memory.peak
        verdict = {True: "fits", False: "does not fit", None: "cannot tell whether it fits"}[self.fits]
        lines.append(f"{gigabytes(found.peak)} on {self.forecast.machine}: {verdict}; {ratio:.2f} times the forecast")
        pace = f"a step of {found.step_tokens:,} tokens takes {found.step_seconds:.3g} s"
        run = f"{found.steps:,} steps and their evaluations about {spoken(found.run_seconds)}"
        return "\n".join([*lines, f"{pace} ({found.tokens_per_second:,.0f} tokens/s), {run}", self.kept])


def difference(forecast: Forecast, measured: Measured) -> dict[str, float]:
    """One measurement beside the uncorrected forecast of it, as it is kept."""
    in_the_step = sum(getattr(forecast.memory, name) for name in IN_THE_STEP)
    over, flops = measured.peak - forecast.memory.peak, forecast.flops_per_token
    rate = {"flops": flops, "tflops": flops * measured.tokens_per_second / 1e12}
    if in_the_step < MUCH:
        return {"context": over, **rate}
    ratio = (in_the_step + over) / in_the_step
    return {"step": ratio, **rate} if SANE[0] <= ratio <= SANE[1] else rate


def spoken(seconds: float) -> str:
    """`40 seconds`, `12 minutes`, `3.5 hours`, `2.1 days`"""
    for unit, size, most in (("seconds", 1, 100), ("minutes", 60, 100), ("hours", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:.2g} days"
