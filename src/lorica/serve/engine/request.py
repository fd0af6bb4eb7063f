"""What is asked of the engine, and what is heard of it.

ticket = engine.submit(Request(...), listener);   listener(Wrote), listener(Wrote), ..., listener(Ended)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from lorica.adapter.mixes import Choice
from lorica.errors import RequestError
from lorica.models.sampling import Sampling

MOST_LOGPROBS = 20
Reason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """tokens       of the prompt, at least one
    max_tokens   how many may be written; the base's context may end an answer earlier
    choice       None for the base, the name of an adapter, or a weight for each of several
    temperature, top_p, top_k, seed     as `lorica.models.generate` has them, and with the same tokens as a result
    stop_ids     tokens that end the answer; the one that does is written too
    logprobs     None: none are told; n: that of each token written, and those of the n likeliest beside it
    tenant       whose prompts may be read again without computing: nobody else's are
    deadline     seconds from submission after which the answer is cut off

    RequestError names all that is out of range.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    choice: Choice = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    tenant: str = ""
    deadline: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.tokens:
            problems.append("tokens: empty; a prompt has at least one token")
        if self.max_tokens < 1:
            problems.append(f"max_tokens: {self.max_tokens} is out of range; it is 1 or more")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            problems.append(f"logprobs: {self.logprobs} is out of range; it is 0 to {MOST_LOGPROBS}")
        if self.deadline is not None and not self.deadline > 0:
            problems.append(f"deadline: {self.deadline} is out of range; it is above 0 seconds")
        problems += _problems_of(self.choice)
        try:
            _ = self.sampling
        except RequestError as error:
            problems += str(error).splitlines()
        if problems:
            raise RequestError.of(problems)

    @cached_property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)


def _problems_of(choice: Choice) -> list[str]:
    if not isinstance(choice, Mapping):
        return []
    if not choice:
        return ["choice: a blend of no adapters; name at least one, or choose the base"]
    return [
        f"choice: the weight of {name!r} is {w}, not a number" for name, w in choice.items() if not math.isfinite(w)
    ]


@dataclass(frozen=True, slots=True)
class Wrote:
    """One more token.  `top` holds (token, log-probability) of the likeliest, where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens: of the prompt, written, and of the prompt those that were not computed again."""

    prompt_tokens: int = 0
    written: int = 0
    reused: int = 0


@dataclass(frozen=True)
class Ended:
    """Heard last, once a request.  `message` says what went wrong after "error"."""

    reason: Reason
    message: str = ""
    usage: Usage = field(default_factory=Usage)


Event = Wrote | Ended
Listener = Callable[[Event], None]
"""Called from the engine's thread: it must not wait for anything."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """The handle on a request that was taken."""

    withdraw: Callable[[], None]
    told: Callable[[], Usage] = Usage

    @property
    def usage(self) -> Usage:
        """What it has come to by now."""
        return self.told()

    def cancel(self) -> None:
        """The request ends with "cancelled" within a step, and holds nothing afterwards.  Any thread; any number of
        times; nothing happens where it has ended already."""
        self.withdraw()
