"""What a data set will teach, seen before training: counts, lengths, doubles, leaks, and the tokens themselves."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lorica.data.dataset import Dataset
from lorica.data.example import Example
from lorica.data.faces import Tokenizer

NAMED = 5
PREVIEWED = 3
SHOWN_TOKENS = 160
SHOWN_ANSWER = 80
BAR = 30


@dataclass(frozen=True)
class Purpose:
    """What the rows are for: the task by its name, what is learned of them (label tokens, rows, pairs), and `told`, the
    answer of an example in words, None where that is its learned tokens."""

    task: str = "causal_lm"
    unit: str = "label tokens"
    told: Callable[[Example], str | None] = lambda example: None


@dataclass(frozen=True)
class Answers:
    """How many different answers the examples have, and the commonest of them with their counts."""

    different: int
    commonest: dict[str, int]


@dataclass(frozen=True)
class Reason:
    """Why rows were dropped, how many, and where the first of them are."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Bucket:
    """Examples of `low` to `high` tokens, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class PreviewToken:
    id: int
    text: str
    label: bool

    def __str__(self) -> str:
        """Its text, or its number where it has none of its own: special tokens, parts of a character."""
        return visible(self.text) if self.text and "\ufffd" not in self.text else f"<{self.id}>"


@dataclass(frozen=True)
class Preview:
    """One example, token by token, with the `answer` that it has beside them."""

    origin: str
    tokens: tuple[PreviewToken, ...]
    answer: str | None = None

    def __str__(self) -> str:
        """Tokens with bars between them; what is learned stands between guillemets."""
        runs = groupby(self.tokens[:SHOWN_TOKENS], key=lambda token: token.label)
        marked = [("«{}»" if label else "{}").format("|".join(map(str, run))) for label, run in runs]
        more = f" ... {len(self.tokens) - SHOWN_TOKENS} more tokens" if len(self.tokens) > SHOWN_TOKENS else ""
        answer = "" if self.answer is None else f" -> «{_short(self.answer)}»"
        return f"{self.origin}: {'|'.join(marked)}{more}{answer}"


@dataclass(frozen=True)
class DataReport:
    """Of the training data; `eval` is the same of the evaluation data, `leakage` what both hold."""

    read: int
    used: int
    examples: int
    dropped: dict[str, Reason]
    truncated: Reason
    shape: str
    tokens: int
    label_tokens: int
    lengths: tuple[Bucket, ...]
    longest: int
    duplicates: Reason
    leakage: Reason
    preview: tuple[Preview, ...]
    fingerprint: str
    eval: "DataReport | None" = None
    task: str = "causal_lm"
    unit: str = "label tokens"
    answers: Answers | None = None

    @classmethod
    def of(
        cls, train: Dataset, held: Dataset | None, tokenizer: Tokenizer | None, purpose: Purpose | None = None
    ) -> "DataReport":
        """The report on both sets. Equal examples are those of which a model reads the same, token for token."""
        leaks, purpose = leaked(train, held) if held else (), purpose or Purpose()
        return _one(train, tokenizer, leaks, cls.of(held, None, tokenizer, purpose) if held else None, purpose)

    def to_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "used": self.used,
            "examples": self.examples,
            "dropped": {reason: _counted(rows) for reason, rows in self.dropped.items()},
            "truncated": _counted(self.truncated),
            "shape": self.shape,
            "tokens": self.tokens,
            "label_tokens": self.label_tokens,
            "lengths": [vars(bucket) for bucket in self.lengths],
            "longest": self.longest,
            "duplicates": _counted(self.duplicates),
            "leakage": _counted(self.leakage),
            "preview": [_shown(preview) for preview in self.preview],
            "fingerprint": self.fingerprint,
            "eval": self.eval.to_dict() if self.eval else None,
            "task": self.task,
            "unit": self.unit,
            "answers": vars(self.answers) if self.answers else None,
        }

    def __str__(self) -> str:
        lines = _lines(self, "train") + (["", *_lines(self.eval, "eval")] if self.eval else [])
        return "\n".join(lines)


def leaked(train: Dataset, held: Dataset) -> tuple[str, ...]:
    """Where the examples held out are that the training data has too."""
    known = {example.read() for example in train.examples}
    return tuple(example.origin for example in held.examples if example.read() in known)


def doubled(examples: Iterable[Example]) -> tuple[str, ...]:
    """Where the examples are that equal an earlier one."""
    seen: set[bytes] = set()
    found = []
    for example in examples:
        content = example.read()
        if content in seen:
            found.append(example.origin)
        seen.add(content)
    return tuple(found)


def histogram(lengths: Sequence[int]) -> tuple[Bucket, ...]:
    """Counts by powers of two: 1, 2, 3-4, 5-8, 9-16, ..., without the empty ends."""
    counts = Counter(max(int(length) - 1, 0).bit_length() for length in lengths)
    if not counts:
        return ()
    return tuple(
        Bucket((1 << (power - 1)) + 1 if power else 1, 1 << power, counts[power])
        for power in range(min(counts), max(counts) + 1)
    )


def preview(example: Example, tokenizer: Tokenizer | None, purpose: Purpose) -> Preview:
    pairs = zip(example.input_ids.tolist(), example.labels.tolist(), strict=True)
    said = tokenizer.decode if tokenizer else str
    tokens = tuple(PreviewToken(token, said([token]), label) for token, label in pairs)
    return Preview(example.origin, tokens, purpose.told(example))


def visible(text: str) -> str:
    """Text with its control characters written out, so that it cannot steer a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _one(
    data: Dataset, tokenizer: Tokenizer | None, leaks: Sequence[str], held: DataReport | None, purpose: Purpose
) -> DataReport:
    lengths = data.lengths.tolist()
    return DataReport(
        read=data.read,
        used=data.used,
        examples=len(data),
        dropped=_reasons(data),
        truncated=_reason(data.truncated),
        shape=data.shape,
        tokens=sum(lengths),
        label_tokens=data.label_tokens,
        lengths=histogram(lengths),
        longest=max(lengths, default=0),
        duplicates=_reason(doubled(data.examples)),
        leakage=_reason(leaks),
        preview=tuple(preview(example, tokenizer, purpose) for example in data.examples[:PREVIEWED]),
        fingerprint=data.fingerprint,
        eval=held,
        task=purpose.task,
        unit=purpose.unit,
        answers=_answers(data, purpose),
    )


def _answers(data: Dataset, purpose: Purpose) -> Answers | None:
    told = Counter(answer for example in data.examples if (answer := purpose.told(example)) is not None)
    return Answers(len(told), dict(told.most_common(NAMED))) if told else None


def _reasons(data: Dataset) -> dict[str, Reason]:
    reasons: dict[str, list[str]] = {}
    for row in data.dropped:
        reasons.setdefault(row.reason, []).append(row.origin)
    return {reason: _reason(origins) for reason, origins in reasons.items()}


def _reason(origins: Sequence[str]) -> Reason:
    return Reason(len(origins), tuple(origins[:NAMED]))


def _counted(reason: Reason) -> dict[str, Any]:
    return {"count": reason.count, "first": list(reason.first)}


def _shown(one: Preview) -> dict[str, Any]:
    return {"origin": one.origin, "tokens": [vars(token) for token in one.tokens], "answer": one.answer}


def _lines(report: DataReport, name: str) -> list[str]:
    shape = report.shape if report.task in (report.shape, "causal_lm") else f"{report.shape}, for {report.task}"
    counts = f"{report.read} rows read = {report.used} used + {report.read - report.used} dropped ({shape})"
    lines = [f"{name}: {counts}"]
    lines += [f"  dropped   {_where(rows)}: {reason}" for reason, rows in report.dropped.items()]
    lines.append(f"  tokens    {report.tokens} in {report.examples} examples, {_learned(report)}")
    lines += [f"  answers   {_told(report.answers)}"] if report.answers else []
    notes = {"cut": report.truncated, "doubles": report.duplicates, "leaks": report.leakage}
    lines += [f"  {what:<9} {_where(rows)}" for what, rows in notes.items() if rows.count]
    lines += ["  lengths   examples", *_bars(report.lengths)]
    lines += ["  first rows, token by token; « learned »", *(f"    {one}" for one in report.preview)]
    return lines


def _learned(report: DataReport) -> str:
    if report.answers is None:
        return f"{report.label_tokens} learned ({report.label_tokens / max(report.tokens, 1):.0%})"
    return f"{report.label_tokens} {report.unit} learned"


def _told(answers: Answers) -> str:
    named = ", ".join(f"{_short(answer)} ({count})" for answer, count in answers.commonest.items())
    return f"{answers.different} different: {named}{', ...' if answers.different > len(answers.commonest) else ''}"


def _short(answer: str) -> str:
    shown = visible(answer)
    return shown if len(shown) <= SHOWN_ANSWER else f"{shown[:SHOWN_ANSWER]} ..."


def _where(rows: Reason) -> str:
    more = ", ..." if rows.count > len(rows.first) else ""
    return f"{rows.count} ({', '.join(rows.first)}{more})"


def _bars(buckets: Sequence[Bucket]) -> list[str]:
    most = max((bucket.count for bucket in buckets), default=1)
    shown = [(f"{each.low}-{each.high}", "#" * -(-each.count * BAR // most), each.count) for each in buckets]
    return [f"    {span:>13} {bar:<{BAR}} {count}" for span, bar, count in shown]
