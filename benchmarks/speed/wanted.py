"""What was wanted of each figure before anything was measured, and whether it is met.

Every figure compares medians of one run; time and memory are of one and the same configuration.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Topics = Mapping[str, Mapping[str, Any]]
OURS = "lorica"
BFLOAT16 = "adapters in bfloat16"


@dataclass(frozen=True)
class Figure:
    """found: None where what it needs was not measured."""

    told: str
    wanted: float
    at: Literal["least", "most"]
    found: Callable[[Topics], float | None]
    share: bool = False

    def verdict(self, topics: Topics) -> dict[str, Any]:
        value = self.found(topics)
        met = None if value is None else bool(value >= self.wanted if self.at == "least" else value <= self.wanted)
        rounded = None if value is None else round(value, 3)
        return {"figure": self.told, "at": self.at, "wanted": self.wanted, "found": rounded, "met": met} | (
            {"share": True} if self.share else {}
        )


def verdicts(topics: Topics) -> list[dict[str, Any]]:
    return [figure.verdict(topics) for figure in FIGURES]


def sides(topics: Topics, topic: str, wanted: Callable[[str], bool]) -> list[Mapping[str, Any]]:
    return [side for name, side in topics.get(topic, {}).get("sides", {}).items() if wanted(name)]


def step(side: Mapping[str, Any]) -> float:
    return side["step_seconds"]["median"]


def rate(side: Mapping[str, Any]) -> float:
    return side["tokens_per_second"]["whole"]


def peak(side: Mapping[str, Any]) -> float:
    return side["peak_bytes"]


def samples(side: Mapping[str, Any]) -> float:
    return side["samples_per_second"]


def named(name: str) -> Callable[[str], bool]:
    return lambda other: other == name


def slower(topic: str, theirs: Callable[[str], bool], of: Callable[[Mapping[str, Any]], float], ours: str = OURS):
    """The peer's least (its quickest or leanest setting) over ours."""

    def found(topics: Topics) -> float | None:
        return over(min, map(of, sides(topics, topic, theirs)), map(of, sides(topics, topic, named(ours))))

    return found


def faster(topic: str, theirs: Callable[[str], bool], of: Callable[[Mapping[str, Any]], float]):
    """Our rate over the peer's best."""

    def found(topics: Topics) -> float | None:
        ratio = over(max, map(of, sides(topics, topic, theirs)), map(of, sides(topics, topic, named(OURS))))
        return None if ratio is None else 1 / ratio

    return found


def over(best: Callable[[Sequence[float]], float], above: Any, below: Any) -> float | None:
    upper, lower = list(above), list(below)
    return best(upper) / lower[0] if upper and lower else None


def of_ours(topic: str, above: str, below: str, of: Callable[[Mapping[str, Any]], float]):
    def found(topics: Topics) -> float | None:
        return over(min, map(of, sides(topics, topic, named(above))), map(of, sides(topics, topic, named(below))))

    return found


def share_of_peak(topic: str) -> Callable[[Topics], float | None]:
    """Floor over step: the operations at the peak's rate, over the seconds they took."""

    def found(topics: Topics) -> float | None:
        ours, of = sides(topics, topic, named(OURS)), topics.get(topic, {})
        if not ours or not of.get("peak_gflops"):
            return None
        return of["operations"]["adapter"] / (of["peak_gflops"] * 1e9) / step(ours[0])

    return found


def long_documents(topics: Topics) -> float | None:
    """Seconds an operation of the longest documents over that of the shortest."""
    points = [point for point in topics.get("linear", {}).get("points", []) if point["kind"] == "documents"]
    if not points:
        return None
    each = {point["longest"]: point["seconds"]["median"] / point["operations"] for point in points}
    return each[max(each)] / each[min(each)]


def eager_at_best(name: str) -> bool:
    return name.startswith(f"peft, {BFLOAT16}") and "compiled" not in name


def compiled(name: str) -> bool:
    return "compiled" in name


def trainer(kind: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(f"peft, HF Trainer, {kind}")


def theirs4(name: str) -> bool:
    return name.startswith("peft, nf4")


FULL, THEIR_FULL, DORA, NF4 = "lorica, full", "transformers, full", "lorica, dora", "lorica, nf4"
FIGURES = [
    Figure("dense, step time: PEFT by default / Lorica", 2.5, "least", slower("dense", named("peft"), step)),
    Figure(
        "dense, step time: PEFT at its best eager setting / Lorica", 2.0, "least", slower("dense", eager_at_best, step)
    ),
    Figure("dense, step time: PEFT under torch.compile / Lorica", 1.7, "least", slower("dense", compiled, step)),
    Figure(
        "mixed, tokens/s: Lorica / HF Trainer, random batches", 4.0, "least", faster("mixed", trainer("random"), rate)
    ),
    Figure(
        "mixed, tokens/s: Lorica / HF Trainer, by length", 3.0, "least", faster("mixed", trainer("by length"), rate)
    ),
    Figure("dense, share of the peak: floor / step", 0.68, "least", share_of_peak("dense"), share=True),
    Figure("dense without AMX, share of the peak: floor / step", 0.68, "least", share_of_peak("untiled"), share=True),
    Figure(
        "dense without bfloat16, share of the peak: floor / step", 0.68, "least", share_of_peak("avx512"), share=True
    ),
    Figure("dense with AVX2 alone, share of the peak: floor / step", 0.68, "least", share_of_peak("avx2"), share=True),
    Figure("dense, peak memory: PEFT by default / Lorica", 2.0, "least", slower("dense", named("peft"), peak)),
    Figure("step time: Lorica LoRA / Lorica full", 0.72, "most", of_ours("full", OURS, FULL, step)),
    Figure(
        "step time: Lorica full / transformers full, the quicker",
        0.75,
        "most",
        lambda topics: _inverse(slower("full", lambda name: name.startswith(THEIR_FULL), step, FULL)(topics)),
    ),
    Figure("step time: DoRA / LoRA", 1.15, "most", of_ours("dora", DORA, OURS, step)),
    Figure("peak memory: DoRA / LoRA", 1.15, "most", of_ours("dora", DORA, OURS, peak)),
    Figure("step time: QLoRA / LoRA", 1.3, "most", of_ours("qlora", NF4, OURS, step)),
    Figure(
        "QLoRA, step time: PEFT with bitsandbytes, the quicker / Lorica",
        2.0,
        "least",
        slower("qlora", theirs4, step, NF4),
    ),
    Figure(
        "QLoRA, peak memory: PEFT with bitsandbytes, the leaner / Lorica",
        1.0,
        "least",
        slower("qlora", theirs4, peak, NF4),
    ),
    Figure("MiniLM, samples/s: Lorica / HF Trainer", 2.5, "least", faster("minilm", lambda n: "Trainer" in n, samples)),
    Figure("4k documents, seconds an operation: over those of the shortest", 1.3, "most", long_documents),
]


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value
