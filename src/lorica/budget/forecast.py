"""A plan with what it costs: `lorica plan`.

flops a token = 4 N_linear + 4 N_head + 7 S Q layers + 2 N_in_place + 6 N_added     S length, Q width
                (+ 2 N_linear + 2 S Q layers             + 2 N_added recomputed)

Forward 2 a weight, gradient of the input 2, of a trained weight 2 more.  N_in_place: matrices of the base that are
trained themselves; an embedding is looked up.  N_added: around linears and behind sublayers; prefixes are made once.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from lorica.adapter import Plan
from lorica.budget.cautions import Caution, Training, cautions
from lorica.budget.corrections import Correction
from lorica.budget.elsewhere import Elsewhere, elsewhere, moved
from lorica.budget.machine import Machine
from lorica.budget.memory import Memory, Moments, Shapes, Workload, gigabytes, memory_of, shapes_of, two_moments
from lorica.site import Site


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What would be trained, the bytes it takes, the arithmetic of one token, and whether it fits.

    `fits` is None where the machine does not tell its memory; `warnings` are of settings that are known to fail,
    `remarks` say what learns how, and `memory` is without the bytes that are kept `elsewhere`.  correction: what was
    measured on this machine, which `memory` contains.
    """

    plan: Plan
    memory: Memory
    work: Workload
    flops_per_token: int
    machine: Machine
    warnings: tuple[Caution, ...] = ()
    remarks: tuple[str, ...] = ()
    elsewhere: Elsewhere = field(default_factory=Elsewhere)
    correction: Correction | None = None

    @property
    def fits(self) -> bool | None:
        return self.machine.holds(self.memory.peak)

    @property
    def tflops(self) -> float | None:
        """Of steps where they were measured here, otherwise of matrix products."""
        steps = None if self.correction is None else self.correction.tflops
        return self.machine.tflops if steps is None else steps

    @property
    def seconds(self) -> float | None:
        """Of a micro-batch: the least that it can take, where only the rate of products is known."""
        return None if self.tflops is None else self.work.tokens * self.flops_per_token / (self.tflops * 1e12)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.plan.to_dict(),
            "memory_bytes": self.memory.to_dict(),
            "elsewhere_bytes": asdict(self.elsewhere),
            "host_layers": self.work.host_layers,
            "flops_per_token": self.flops_per_token,
            "recomputed_blocks": "all" if self.work.recomputed is None else self.work.recomputed,
            "fits": self.fits,
            "device": str(self.machine),
            "seconds_per_micro_batch": self.seconds,
            "corrected": None if self.correction is None else asdict(self.correction),
            "warnings": [caution.to_dict() for caution in self.warnings],
        }

    def __str__(self) -> str:
        advice = list(filter(None, (method.advice() for method in self.plan.methods)))
        said = [*advice, *self.remarks, *map(str, self.warnings)]
        lines = [
            str(self.plan),
            *said,
            "",
            self._headline(),
            str(self.memory),
            *self._elsewhere(),
            *([] if self.correction is None else [str(self.correction)]),
            self._verdict(),
            *self._pace(),
        ]
        return "\n".join(lines)

    def _headline(self) -> str:
        return (
            f"memory, estimated for micro-batches of {self.work.tokens:,} tokens "
            f"({self.flops_per_token / 1e9:,.3g} GFLOP a token{self._recomputing()}):"
        )

    def _elsewhere(self) -> list[str]:
        place = "in a file" if self.machine.kind == "cpu" else "in host memory"
        layers = f" ({self.work.host_layers} layers)" if self.work.host_layers else ""
        return [f"kept {place} beside it: {self.elsewhere}{layers}"] if self.elsewhere.total else []

    def _pace(self) -> list[str]:
        if self.seconds is None:
            return []
        if self.tflops != self.machine.tflops:
            return [
                f"at the {self.tflops:.3g} TFLOP/s that steps reached here a micro-batch takes {self.seconds:.2g} s"
            ]
        which = "measured" if self.machine.measured else "published"
        rate = f"{which} {self.tflops:.3g} TFLOP/s"
        return [f"at the {rate} of matrix products a micro-batch takes {self.seconds:.2g} s at least"]

    def _recomputing(self) -> str:
        again = self.work.recomputed
        return "" if again == 0 else f", {'all' if again is None else again} blocks computed again"

    def _verdict(self) -> str:
        verdict = {True: "fits", False: "does not fit", None: "cannot tell whether it fits"}[self.fits]
        remedy = "; lorica plan RECIPE --fit shows what does" if self.fits is False else ""
        return f"{gigabytes(self.memory.peak)} on {self.machine}: {verdict}{remedy}"


def forecast(
    plan: Plan,
    work: Workload,
    machine: Machine,
    *,
    decoder: bool,
    moments: Moments = two_moments,
    training: Training | None = None,
    remarks: tuple[str, ...] = (),
    correction: Correction | None = None,
) -> Forecast:
    """decoder: the base runs on our own decoder rather than on transformers'.  moments: of the optimiser, for each
    trained tensor.  training: how the run learns, None where that is not decided."""
    memory = memory_of(plan, work, machine.kind, decoder, moments)
    away = elsewhere(memory, plan, work, moments)
    held = moved(memory, away, plan, work, machine.kind)
    return Forecast(
        plan=plan,
        memory=held if correction is None else correction.of(held),
        correction=correction,
        elsewhere=away,
        work=work,
        flops_per_token=flops_a_token(plan, work),
        machine=machine,
        warnings=() if training is None else cautions(plan, training),
        remarks=remarks,
    )


def flops_a_token(plan: Plan, work: Workload) -> int:
    shapes = shapes_of(plan)
    attention = work.length * shapes.q * shapes.layers
    in_place = sum(edit.parameters for edit in plan.edits if edit.whole and _multiplies(edit.site, shapes))
    added = sum(edit.parameters for edit in plan.edits if edit.edit.place in ("around", "after"))
    flops = 4 * shapes.linear_parameters + 4 * shapes.head_parameters + 7 * attention + 2 * in_place + 6 * added
    again = 2 * shapes.linear_parameters + 2 * attention + 2 * added
    share = 1.0 if work.recomputed is None else min(work.recomputed / max(shapes.layers, 1), 1.0)
    return int(flops + share * again)


def _multiplies(site: Site, shapes: Shapes) -> bool:
    """Whether a parameter is a matrix that tokens are multiplied with; an embedding is where it is the head as well."""
    return len(site.shape) == 2 and ("embed" not in site.roles or shapes.tied)
