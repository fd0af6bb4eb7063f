"""Advice: which method, and with which settings, from the data, the base and the device, each with its reason.

The rules are tables (`rules.py`): of each topic the first rule whose condition holds counts.  A later topic may look at
what was chosen before it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lorica.budget.measured import spoken


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What rules look at.

    shape                   of the rows: text, prompt_completion, ...
    rows, dropped           that can be used, and that cannot
    tokens, learned         of all rows, and those whose loss counts; longest: row, in tokens
    instructed              the base has a chat template
    a_rank                  parameters that LoRA trains on all linears for one rank
    fits, full_fits         16-bit weights with LoRA, and full fine-tuning, on the device alone
    seconds_a_token         of LoRA at the least, None where no rate is known; hours: that there are, None: not said
    """

    task: str
    shape: str
    rows: int
    dropped: int
    tokens: int
    learned: int
    longest: int
    model: str
    family: str
    instructed: bool
    context: int
    parameters: int
    width: int
    a_rank: int
    quantised: bool
    fits: bool
    full_fits: bool
    seconds_a_token: float | None
    hours: float | None

    @property
    def plain_text(self) -> bool:
        """Nothing but text, as in pretraining."""
        return self.task == "causal_lm" and self.shape == "text"

    def holds(self, r: int) -> int:
        """Tokens whose loss an adapter of rank r has room for: two bits a parameter, one a token."""
        return 2 * r * self.a_rank

    def seconds(self, epochs: float) -> float | None:
        return None if self.seconds_a_token is None else epochs * self.tokens * self.seconds_a_token


Chosen = Mapping[str, Any]
"""The recipe's keys that are settled so far."""
Condition = Callable[[Facts, Chosen], bool]
Value = Any
"""Of a setting; where it is computed, from facts and what was chosen."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Settings that are chosen where `when` holds, in words, with the reason and its source."""

    when: Condition
    sets: Mapping[str, Value]
    reason: str
    source: str
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Something to know where `when` holds: that sources disagree, or that LoRA does not suit."""

    when: Condition
    words: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What one topic came to."""

    topic: str
    settings: Mapping[str, Any]
    reason: str
    source: str
    words: str = ""

    def __str__(self) -> str:
        told = ", ".join(f"{key.rpartition('.')[2]} {_told(value)}" for key, value in self.settings.items())
        return f"{self.topic:<14} {self.words or told}\n  {self.reason} ({self.source})"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A method and its settings for some data on a base; `recipe` trains it as it is, `yaml` is its text.

    disagreements: where sources say different things.  doubts: why LoRA may not suit.  peak, seconds: of the recipe on
    the device by the forecast, the seconds at least; None: no rate is known.
    """

    facts: Facts
    decisions: tuple[Decision, ...]
    disagreements: tuple[tuple[str, str], ...]
    doubts: tuple[tuple[str, str], ...]
    recipe: Mapping[str, Any] = field(repr=False)
    yaml: str = field(repr=False)
    device: str
    peak: int
    seconds: float | None

    @property
    def method(self) -> str:
        return self.decisions[0].words

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "facts": asdict(self.facts),
            "decisions": [asdict(each) for each in self.decisions],
            "disagreements": [{"text": text, "source": source} for text, source in self.disagreements],
            "doubts": [{"text": text, "source": source} for text, source in self.doubts],
            "device": self.device,
            "peak_bytes": self.peak,
            "seconds": self.seconds,
            "recipe": dict(self.recipe),
        }

    def __str__(self) -> str:
        f = self.facts
        dropped = f", {f.dropped:,} dropped" if f.dropped else ""
        pace = "" if self.seconds is None else f", {spoken(self.seconds)} at least"
        lines = [
            f"{f.rows:,} rows ({f.shape}{dropped}), {f.tokens:,} tokens, {f.learned:,} learned, the longest row "
            f"{f.longest:,}; {f.model}: {f.parameters:,} parameters",
            "",
            *map(str, self.decisions),
            *_section("sources disagree", self.disagreements),
            *_section("what to doubt", self.doubts),
            "",
            f"# {self.peak / 1e9:.2f} GB of {self.device}{pace}, by the forecast; lorica plan --measure tries it",
            self.yaml.rstrip(),
        ]
        return "\n".join(lines)


def decide(facts: Facts, table: Mapping[str, Sequence[Rule]]) -> tuple[Decision, ...]:
    """A decision a topic, in the order of the table; none where no rule of a topic holds."""
    chosen: dict[str, Any] = {}
    found = []
    for topic, rules in table.items():
        rule = next((rule for rule in rules if rule.when(facts, chosen)), None)
        if rule is not None:
            settings = {key: v(facts, chosen) if callable(v) else v for key, v in rule.sets.items()}
            chosen |= settings
            found.append(
                Decision(topic=topic, settings=settings, reason=rule.reason, source=rule.source, words=rule.words)
            )
    return tuple(found)


def noted(facts: Facts, chosen: Chosen, table: Sequence[Remark]) -> tuple[tuple[str, str], ...]:
    return tuple((each.words, each.source) for each in table if each.when(facts, chosen))


def _section(title: str, remarks: Sequence[tuple[str, str]]) -> list[str]:
    return ["", *(f"{title}: {words} ({source})" for words, source in remarks)] if remarks else []


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(entry)}" for key, entry in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
