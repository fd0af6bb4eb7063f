"""An engine and a shelf with the face of the real ones, which say what a test tells them to."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorica.errors import AdapterError, QueueFullError, UnknownAdapterError
from lorica.serve.engine import Described, Ended, OfAdapter, Request, Stats, Ticket, Usage, Wrote

END = 256
"""Tokens below are bytes of UTF-8."""


class ByteTokenizer:
    """One token a byte; the end token beside them."""

    eos_token_id, bos_token_id = END, None

    def encode(self, text: str, /) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], /) -> str:
        return bytes(token for token in ids if token < END).decode(errors="replace")


def echo(request: Request) -> Iterator[int]:
    """Says who answers, and the prompt."""
    said = f"{_label(request)}: {ByteTokenizer().decode(request.tokens)}"
    yield from said.encode()
    yield END


def _label(request: Request) -> str:
    choice = request.choice
    if choice is None or isinstance(choice, str):
        return choice or "base"
    return "+".join(f"{weight:g}*{name}" for name, weight in choice.items())


@dataclass(eq=False)
class FakeShelf:
    """Adapters by name; `contents` are the folders that it was given, `hook` runs inside of each load."""

    names: dict[str, int] = field(default_factory=dict)
    contents: dict[str, Path] = field(default_factory=dict)
    hook: Callable[[str], None] = lambda name: None

    def load(self, name: str, folder: Path) -> None:
        if name in self.names:
            raise AdapterError(f"{name!r} is served already")
        self.hook(name)
        self.names[name], self.contents[name] = 1, folder

    def replace(self, name: str, folder: Path) -> None:
        self.hook(name)
        self.names[name] += 1
        self.contents[name] = folder

    def unload(self, name: str) -> None:
        if name not in self.names:
            raise UnknownAdapterError(f"no adapter {name!r}")
        del self.names[name]

    def list(self) -> tuple[Described, ...]:
        return tuple(
            Described(
                name=name,
                generation=generation,
                digest="d" * 64,
                state="ready",
                rank=8,
                bytes=1000,
                method="lora",
                tier="device",
                in_flight=0,
                loaded_at=1.0,
            )
            for name, generation in self.names.items()
        )


@dataclass(eq=False)
class FakeEngine:
    """script     the tokens that a request is answered with
    delay      seconds before each
    room       requests that are taken at once
    """

    shelf: FakeShelf
    script: Callable[[Request], Iterator[int]] = echo
    delay: float = 0.0
    room: int = 1000
    alive: bool = True
    context: int = 1 << 20
    reused: int = 0
    asked: list[Request] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0
    closed: bool = False

    def start(self) -> None:
        return None

    def close(self, timeout: float = 10) -> None:
        self.closed = True

    def longest(self, prompt: int) -> int:
        return self.context - prompt + 1

    def submit(self, request: Request, listener: Callable[[object], None]) -> Ticket:
        if isinstance(request.choice, str) and request.choice not in self.shelf.names:
            raise UnknownAdapterError(f"no adapter {request.choice!r}")
        if self.running >= self.room:
            raise QueueFullError("the queue is full")
        self.asked.append(request)
        self.running += 1
        stop = threading.Event()
        threading.Thread(target=self._answer, args=(request, listener, stop), daemon=True).start()
        return Ticket(stop.set, lambda: Usage(prompt_tokens=len(request.tokens), reused=self.reused))

    def _answer(self, request: Request, listener: Callable[[object], None], stop: threading.Event) -> None:
        written, reason, message = 0, "length", ""
        try:
            for token in self.script(request):
                if self.delay:
                    time.sleep(self.delay)
                if stop.is_set() or self.closed:
                    reason, self.cancelled = "cancelled", self.cancelled + 1
                    break
                if request.deadline is not None and request.deadline < self.delay * (written + 1):
                    reason = "deadline"
                    break
                top = tuple((token + n, -float(n + 1)) for n in range(request.logprobs or 0))
                listener(Wrote(token, None if request.logprobs is None else -0.5, top))
                written += 1
                if token in request.stop_ids:
                    reason = "stop"
                    break
                if written == request.max_tokens:
                    break
        except Exception as error:
            reason, message = "error", str(error)
        self.running -= 1
        usage = Usage(prompt_tokens=len(request.tokens), written=written, reused=0)
        listener(Ended(reason, message, usage))  # type: ignore[arg-type]

    def stats(self) -> Stats:
        return Stats(
            running=self.running,
            waiting=0,
            steps=1,
            read=10,
            written=5,
            reused=3,
            blocks_used=1,
            blocks_kept=0,
            blocks_free=7,
            resident=len(self.shelf.names),
            resident_bytes=1000,
            preempted=0,
            ended={"stop": 2},
            by_adapter={"": OfAdapter(running=1), "sql": OfAdapter(requests=2), "a+b": OfAdapter(requests=3)},
        )
