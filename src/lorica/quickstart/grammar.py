"""Small phrase grammars: a symbol has alternatives, an alternative is words, slots and further symbols.

    which = which {t} have [*phrase]? | what are the {t} [rel]?

`{t}` is a slot that a name fills later; `[rel]` is replaced by one alternative of `rel`; `[*phrase]` by one `phrase`
for each condition of the question, joined by `and.phrase`. A tag chooses between variants: with the tag `gt`, `[prep]`
reads `prep:gt` where there is one, else `prep`. Alternatives may go on in indented lines; `-` is the empty one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from random import Random

_SYMBOL = re.compile(r"\[(\*?)([a-z.]+)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_COMMENT = re.compile(r"^#.*\n", re.MULTILINE)
_RULE = re.compile(r"^(\S+) =((?:.*\n)(?:[ ]+.*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Shape:
    """What a phrasing must say: the symbol it starts from, the tags, and the operator of each condition."""

    start: str
    tags: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


class Grammar:
    """Phrasings as data; `draw` takes one at random, `all` enumerates them."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, tuple[str, ...]] = {}
        for rule in _RULE.findall(_COMMENT.sub("", text)):
            symbol, body = rule
            self.rules[symbol] = tuple("" if part.strip() == "-" else part.strip() for part in _split(body))

    @classmethod
    def read(cls, name: str) -> "Grammar":
        """A grammar file of this package."""
        return cls(resources.files("lorica.quickstart").joinpath(name).read_text(encoding="utf-8"))

    def extended(self, further: "Grammar") -> "Grammar":
        """This grammar with the alternatives of another beside its own."""
        both = Grammar("")
        both.rules = {symbol: self.rules.get(symbol, ()) + more for symbol, more in further.rules.items()}
        both.rules = {**self.rules, **both.rules}
        return both

    def draw(self, shape: Shape, rng: Random) -> str:
        return _tidy(self._draw(shape.start, shape.tags, shape.conditions, rng))

    def all(self, shape: Shape) -> Iterator[str]:
        return map(_tidy, self._all(f"[{shape.start}]", shape.tags, shape.conditions))

    def alternatives(self, symbol: str, tags: tuple[str, ...]) -> tuple[str, ...]:
        for tag in tags:
            if f"{symbol}:{tag}" in self.rules:
                return self.rules[f"{symbol}:{tag}"]
        return self.rules[symbol]

    @cached_property
    def words(self) -> frozenset[str]:
        """Every plain word of the grammar."""
        bodies = " ".join(" ".join(alternatives) for alternatives in self.rules.values())
        return frozenset(re.findall(r"[a-z]+", _SLOT.sub(" ", _SYMBOL.sub(" ", bodies)).lower()))

    def _draw(self, symbol: str, tags: tuple[str, ...], conditions: tuple[str, ...], rng: Random) -> str:
        body = rng.choice(self.alternatives(symbol, tags))
        return _SYMBOL.sub(lambda match: self._replace(match, tags, conditions, rng), body)

    def _replace(self, match: re.Match[str], tags: tuple[str, ...], conditions: tuple[str, ...], rng: Random) -> str:
        many, symbol = match.groups()
        if not many:
            return self._draw(symbol, tags, conditions, rng)
        parts = [_numbered(self._draw(symbol, (operator,), (), rng), k) for k, operator in enumerate(conditions)]
        return f" {self._draw(f'and.{symbol}', (), (), rng)} ".join(parts)

    def _all(self, body: str, tags: tuple[str, ...], conditions: tuple[str, ...]) -> Iterator[str]:
        match = _SYMBOL.search(body)
        if match is None:
            yield body
            return
        for middle in self._expansions(match, tags, conditions):
            for rest in self._all(body[match.end() :], tags, conditions):
                yield body[: match.start()] + middle + rest

    def _expansions(self, match: re.Match[str], tags: tuple[str, ...], conditions: tuple[str, ...]) -> Iterator[str]:
        many, symbol = match.groups()
        if not many:
            for alternative in self.alternatives(symbol, tags):
                yield from self._all(alternative, tags, conditions)
            return
        heads = [""]
        for k, operator in enumerate(conditions):
            parts = [_numbered(part, k) for part in self._all(f"[{symbol}]", (operator,), ())]
            joints = self._all(f"[and.{symbol}]", (), ()) if k else iter([""])
            heads = [f"{head} {joint} {part}" for joint in joints for head in heads for part in parts]
        yield from heads


def _split(body: str) -> list[str]:
    return body.strip().removeprefix("|").split("|")


def _numbered(part: str, k: int) -> str:
    """The slots of condition `k`: `{c}` becomes `{c0}`."""
    return _SLOT.sub(rf"{{\g<1>{k}}}", part)


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([.,?:;])", r"\1", text)
