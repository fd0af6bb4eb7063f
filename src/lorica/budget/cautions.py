"""Settings that are known to fail: what a run is warned of before it starts, each with its reason and its source.

    rate(h) = 5e-4 (2000 / h)^0.781        LoRA's learning rate on a base of width h, fitted by tinker-cookbook

Rates are compared as AdamW's: those of another optimiser are divided by its own usual rate over AdamW's.  LoRA+ at eta
and ratio is LoRA at eta sqrt(ratio) from a start sqrt(ratio) times as large, so that is its rate here.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from math import sqrt

from lorica.adapter import Plan
from lorica.adapter.plan import PlannedTensor
from lorica.budget.memory import shapes_of
from lorica.site import Site

REGRET = "Schulman et al. 2025, LoRA Without Regret"
FULL_RATE = 5e-5
"""The largest usual one of full fine-tuning, which starts at 1e-5."""
LORA_RATE = 2e-4
HIGH_RANK, HIGHER_RANK = 128, 256
MANY_ROWS = 10_000
LARGE_STEP = 256
STEEP = 16
MLP = frozenset({"gate", "up", "down", "fc1", "fc2"})
NEAR_THE_WEIGHT = frozenset({"pissa", "olora", "lora_ga"})
"""Starts whose factors are of the size of the weight's own, and which learn at lower rates: PiSSA's paper has 2e-5."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a run learns, as far as it is known to succeed or fail.

    pace            usual learning rates of the optimiser over AdamW's; None where the two cannot be compared
    rows_per_step   of an optimiser step, at least;  rows: of the data, about;  None: not known
    """

    learning_rate: float
    optimizer: str = "adamw"
    pace: float | None = 1.0
    lora_plus_ratio: float | None = None
    rows_per_step: int | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Caution:
    """One setting that is known to fail: what it is and what to do, why, and who found it."""

    text: str
    reason: str
    source: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"warning: {self.text}\n         {self.reason} ({self.source})"


def cautions(plan: Plan, training: Training) -> tuple[Caution, ...]:
    """Every caution that a plan and its training call for, in the order in which to look at them."""
    case = Case(plan, training)
    return tuple(caution for check in CHECKS for caution in check(case))


@dataclass(frozen=True)
class Case:
    plan: Plan
    training: Training

    @cached_property
    def roles(self) -> set[str]:
        return {tensor.role for tensor in self.plan.learned.values()}

    @property
    def low_rank(self) -> bool:
        return bool(self.roles & {"A", "B"})

    @cached_property
    def full(self) -> bool:
        """Most of the base is trained in place."""
        return 2 * sum(edit.parameters for edit in self.plan.edits if edit.whole) > self.plan.base_parameters

    @cached_property
    def rank(self) -> int:
        held = ((edit.site, tensor) for edit in self.plan.edits for tensor in edit.tensors.values())
        return max((_rank(site, tensor) for site, tensor in held if tensor.trained and tensor.role == "B"), default=0)

    @cached_property
    def usual(self) -> float:
        """LoRA's rate on this base; that of a width of 2000 where no width can be read off it."""
        width = shapes_of(self.plan).d or 2000
        return 5e-4 * (2000 / width) ** 0.781

    @property
    def rate(self) -> float | None:
        """Of A, as AdamW's."""
        pace = self.training.pace
        return None if pace is None else self.training.learning_rate / pace

    @property
    def ratio(self) -> float:
        return self.training.lora_plus_ratio or 1.0

    @property
    def of_the_product(self) -> float | None:
        return None if self.rate is None else self.rate * sqrt(self.ratio)

    def starts_near_the_weight(self) -> bool:
        starts = (getattr(method, "init", "") for method in self.plan.methods)
        return any(getattr(start, "kind", start) in NEAR_THE_WEIGHT for start in starts)

    @property
    def said(self) -> str:
        """The rate as the recipe has it."""
        under = "" if self.training.optimizer == "adamw" else f" under {self.training.optimizer}"
        return f"learning_rate {spelled(self.training.learning_rate)}{under}"

    def asked(self, adamw: float) -> str:
        """A rate of AdamW in this optimiser's terms."""
        return spelled(adamw * (self.training.pace or 1.0))


def _rank(site: Site, B: PlannedTensor) -> int:
    """B (d_out, r), of a convolution (d_out, r, 1...), of E experts (d_out, r E)."""
    return B.shape[1] // (site.shape[0] if site.kind == "experts" else 1)


def spelled(rate: float) -> str:
    """2e-4 rather than 0.0002, with two digits."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def full_rate_with_lora(case: Case) -> Iterator[Caution]:
    rate = case.of_the_product
    excused = not case.low_rank or case.rank >= HIGH_RANK or case.starts_near_the_weight()
    if rate is not None and rate <= FULL_RATE and not excused:
        yield Caution(
            f"{case.said} is one of full fine-tuning; start LoRA at {case.asked(LORA_RATE)}",
            "LoRA learns best at about ten times the rate of full fine-tuning: 9.8 over 14 models",
            REGRET,
        )


def lora_rate_with_full(case: Case) -> Iterator[Caution]:
    """On narrow bases a tenth of LoRA's rate is more than what large ones take."""
    limit = max(FULL_RATE, case.usual / 10)
    if case.rate is not None and case.rate > limit and case.full:
        yield Caution(
            f"{case.said} is one of LoRA, and all of the base is trained; go down to {case.asked(limit)} or less",
            "full fine-tuning learns best at about a tenth of LoRA's rate, and forgets or diverges above it",
            REGRET,
        )


def high_rank_at_the_usual_rate(case: Case) -> Iterator[Caution]:
    rate = case.of_the_product
    if rate is not None and case.rank >= HIGHER_RANK and rate >= LORA_RATE and not case.full:
        yield Caution(
            f"r={case.rank} at {case.said}; start at {case.asked(2.5e-5)}, or keep alpha fixed and sweep the rate",
            "a 1.5B QLoRA of rank 256 at 2e-4 went from loss 1.44 to 16 in 30 steps, and was stable near 2e-5; with "
            f"alpha / r and one alpha, rates of ranks 4 to 512 differ by less than two ({REGRET})",
            "paiml/aprender pull request 2258",
        )


def ratio_on_the_rate_of_b(case: Case) -> Iterator[Caution]:
    if case.rate is None or case.ratio == 1.0:
        return
    of_said = spelled(case.training.learning_rate * case.ratio)
    of_b, limit = case.rate * case.ratio, 4 * case.usual
    if of_b > limit or (case.ratio >= STEEP and case.rate >= LORA_RATE):
        yield Caution(
            f"lora_plus_ratio {case.ratio:g} at {case.said}: B learns at {of_said}; "
            f"learning_rate is A's, so start at {case.asked(min(LORA_RATE, limit / case.ratio) / 2)}",
            "the ratio multiplies A's rate, which the authors lower: 5e-5 with 80 on RoBERTa, 2e-4 with 10 on GPT-2; "
            "with B starting at zero 4 to 8 is usual, 2 to 4 on Llamas",
            "Hayou et al. 2024, arXiv:2402.12354, and its scripts",
        )


def lion_at_adamws_rate(case: Case) -> Iterator[Caution]:
    smaller = case.training.pace is not None and case.training.pace < 1
    if smaller and case.low_rank and case.rate is not None and case.rate > 2 * case.usual:
        yield Caution(
            f"{case.said} is one of AdamW; start at {case.asked(LORA_RATE)}",
            "its steps are longer than AdamW's, so rates 3 to 10 times smaller serve",
            "Chen et al. 2023, arXiv:2302.06675, and the notes on its code",
        )


def attention_alone_on_much_data(case: Case) -> Iterator[Caution]:
    rows = case.training.rows
    there = {role for site in case.plan.base if site.kind == "linear" for role in site.roles}
    adapted = {role for edit in case.plan.edits if edit.edit.place == "around" for role in edit.site.roles}
    if rows is not None and rows >= MANY_ROWS and case.low_rank and there & MLP and not adapted & MLP:
        yield Caution(
            f"the MLP is not adapted, and there are about {rows:,} rows; take target_modules: all-linear",
            "at equal parameters all linears, or the MLP alone, learn at least as much as attention alone",
            f"{REGRET}; Biderman et al. 2024, arXiv:2405.09673; QLoRA, arXiv:2305.14314, section 4",
        )


def large_steps(case: Case) -> Iterator[Caution]:
    rows = case.training.rows_per_step
    if rows is not None and rows >= LARGE_STEP and case.low_rank:
        yield Caution(
            f"{rows} rows an optimiser step; take 32 or fewer, and more steps",
            "LoRA loses more than full fine-tuning as batches grow, whatever its rank, since it learns a product",
            f"{REGRET}; TRL advises fewer than 32",
        )


def float16_on_a_quantised_base(case: Case) -> Iterator[Caution]:
    if any(site.stored and site.dtype == "float16" for site in case.plan.base):
        yield Caution(
            "a quantised base that computes in float16; set model.dtype: bfloat16 where the device has it, or float32",
            "activations overflow: about one in five runs of a 7B base did not finish",
            "the notes on QLoRA's code, artidoro/qlora",
        )


def few_linears_on_a_quantised_base(case: Case) -> Iterator[Caution]:
    linears = {edit.site.name for edit in case.plan.edits if edit.edit.place == "around"}
    left = [site for site in case.plan.base if site.kind == "linear" and site.stored and site.name not in linears]
    if left and case.low_rank:
        yield Caution(
            f"{len(left)} quantised linears are not adapted; take target_modules: all-linear",
            "with adapters on all linears four bits learn as 16 do, with some of them alone they do not",
            "Dettmers et al. 2023, arXiv:2305.14314, section 4",
        )


CHECKS: tuple[Callable[[Case], Iterator[Caution]], ...] = (
    full_rate_with_lora,
    lora_rate_with_full,
    high_rank_at_the_usual_rate,
    ratio_on_the_rate_of_b,
    lion_at_adamws_rate,
    attention_alone_on_much_data,
    large_steps,
    float16_on_a_quantised_base,
    few_linears_on_a_quantised_base,
)
