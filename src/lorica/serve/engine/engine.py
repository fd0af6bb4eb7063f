"""Engine: many requests answered together by one base, each with its own adapters, as if each were alone.

One thread owns the model.  Everybody else submits, cancels and listens.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from lorica.errors import LoricaError, QueueFullError, RequestError, RunError
from lorica.models import context_limit
from lorica.models.generate import evaluating
from lorica.models.paged import BLOCK
from lorica.serve.engine import prefix
from lorica.serve.engine.document import Document
from lorica.serve.engine.lease import Adapters, Lease
from lorica.serve.engine.limits import Limits
from lorica.serve.engine.machinery import machinery
from lorica.serve.engine.request import Ended, Event, Listener, Reason, Request, Ticket, Wrote
from lorica.serve.engine.runner import Written
from lorica.serve.engine.stats import Counts, OfAdapter, Stats

LOOK = 0.05
"""Seconds between two looks at the deadlines of those that wait."""
logger = logging.getLogger("lorica.serve")


class Engine:
    """shelf: a Shelf, or a Merged where one adapter is part of the model's weights.

    with Engine(model, shelf) as engine:
        ticket = engine.submit(Request(tokens=..., max_tokens=64, choice="sql"), listener)
    """

    def __init__(self, model: nn.Module, shelf: Adapters, limits: Limits | None = None) -> None:
        self.model, self.shelf = model, shelf
        self.limits = Limits() if limits is None else limits
        self.runner, self._scheduler, self._kept = machinery(model, shelf, self.limits)
        self._base = f"{type(model).__qualname__} {getattr(model, 'source', '')}"
        self._counts = Counts()
        self._inbox: deque[Document] = deque()
        self._withdrawn: deque[Document] = deque()
        self._leaving: list[Document] = []
        self._heard: list[tuple[Document, Event]] = []
        self._look_at = 0.0
        self._gate, self._wake = threading.Lock(), threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        shelf.on_change(self._wake.set)

    def start(self) -> None:
        """From now on what is submitted is answered."""
        self._thread = threading.Thread(target=self._run, name="lorica engine", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 10) -> None:
        """Every request ends with "cancelled".  RunError where the pass at hand takes longer than `timeout` seconds."""
        with self._gate:
            self._closed = True
        self._wake.set()
        if self._thread is None:
            self._end_all()
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise RunError(f"engine: still in a pass after {timeout} seconds")

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""
        return self._thread is not None and self._thread.is_alive() and not self._closed

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Takes a request.  From any thread; the listener is called from the engine's.

        UnknownAdapterError for adapters that are not served, RequestError for what the base or the cache cannot hold,
        QueueFullError where as many wait as may, RunError once the engine is closed.
        """
        room = self._room(request)
        self.runner.check(request)
        lease = self.shelf.lease(request.choice)
        try:
            document = self._document(request, listener, lease, room)
            with self._gate:
                self._require_place()
                self._inbox.append(document)
        except BaseException:
            self.shelf.give_back(lease)
            raise
        self._wake.set()
        return Ticket(lambda: self._withdraw(document), lambda: document.usage)

    def stats(self) -> Stats:
        """From any thread; numbers that belong together may be a step apart."""
        blocks, counts = self._scheduler.blocks, self._counts
        running = list(self._scheduler.running)
        by_adapter = {name: [0, 0, c.requests, c.read, c.written] for name, c in list(counts.by_adapter.items())}
        for place, documents in ((0, running), (1, [*self._scheduler.waiting_documents(), *list(self._inbox)])):
            for document in documents:
                by_adapter.setdefault(document.lease.name, [0] * 5)[place] += 1
        tallies = list(counts.by_adapter.values())
        resident, held = self.shelf.resident()
        return Stats(
            running=len(running),
            waiting=self._scheduler.waiting + len(self._inbox),
            steps=counts.steps,
            read=sum(tally.read for tally in tallies),
            written=sum(tally.written for tally in tallies),
            reused=counts.reused,
            blocks_used=blocks.count - blocks.available,
            blocks_kept=blocks.kept,
            blocks_free=blocks.free,
            resident=resident,
            resident_bytes=held,
            preempted=self._scheduler.preempted,
            ended=dict(counts.ended),
            by_adapter={
                name: OfAdapter(running=r, waiting=w, requests=n, read=read, written=written)
                for name, (r, w, n, read, written) in by_adapter.items()
            },
        )

    @torch.inference_mode()
    def step(self) -> bool:
        """One round.  Whether there is anything to do in the next."""
        self._receive()
        self._retire()
        self._admit()
        decoded = self._decode()
        read = self._prefill(alone=not decoded)
        self._tell()
        return decoded or read

    def _receive(self) -> None:
        """Withdrawals first: what they name was submitted before, and is then among what is taken in."""
        self._leaving = [self._withdrawn.popleft() for _ in range(len(self._withdrawn))]
        while self._inbox:
            document = self._inbox.popleft()
            self._scheduler.put(document)
            self._counts.of(document.lease.name).requests += 1

    def _retire(self) -> None:
        """What was cancelled, what is late, and what no adapter will come for any more."""
        for document in self._leaving:
            self._end(document, "cancelled")
        now = time.monotonic()
        looked = self._scheduler.running
        if now >= self._look_at:
            self._look_at = now + LOOK
            looked = self._scheduler.documents()
            self._end_failed(looked)
        for document in [d for d in looked if d.ends_at is not None and d.ends_at <= now]:
            self._end(document, "deadline")

    def _end_failed(self, documents: Iterable[Document]) -> None:
        for document in documents:
            problem = "" if document.ended else self.shelf.problem(document.lease)
            if problem and not document.table:
                self._end(document, "error", problem)

    def _admit(self) -> None:
        for document in self._scheduler.admit():
            self._counts.reused += document.read

    def _decode(self) -> bool:
        documents = self._scheduler.decoding()
        return self._pass(documents, [1] * len(documents), lambda: self.runner.decode(documents))

    def _prefill(self, alone: bool) -> bool:
        pieces = self._scheduler.pieces(self._kept.prompt_alone if alone else self._kept.prompt_chunk)
        return self._pass([d for d, _ in pieces], [n for _, n in pieces], lambda: self.runner.prefill(pieces))

    def _tell(self) -> None:
        """Listeners hear what the step has brought.  One that fails has nobody behind it."""
        self._counts.steps += 1
        heard, self._heard = self._heard, []
        for document, event in heard:
            try:
                document.listener(event)
            except Exception:
                logger.exception("a listener failed; its request is cancelled")
                self._withdraw(document)

    def _pass(self, documents: Sequence[Document], counts: Sequence[int], work: Callable[[], Written]) -> bool:
        """Whether there was anything to read.  A pass that fails ends the requests that were in it, and no other."""
        if not documents:
            return False
        try:
            written = work()
        except Exception as error:
            self._fail(documents, error)
            return True
        for document, count in zip(documents, counts, strict=True):
            self._scheduler.advance(document, count)
            self._counts.of(document.lease.name).read += count
        for document, event in written:
            self._write(document, event)
        return True

    def _write(self, document: Document, event: Wrote | None) -> None:
        if event is None:
            self._end(document, "error", "the model's answer is no number (an adapter that overflows in this type?)")
            return
        document.tokens.append(event.token)
        self._counts.of(document.lease.name).written += 1
        self._heard.append((document, event))
        if event.token in document.request.stop_ids:
            self._end(document, "stop")
        elif document.written >= document.room:
            self._end(document, "length")

    def _fail(self, documents: Iterable[Document], error: Exception) -> None:
        logger.error("a pass failed", exc_info=error)
        message = str(error) if isinstance(error, LoricaError) else f"the pass failed ({type(error).__name__})"
        for document in documents:
            self._end(document, "error", message)

    def _end(self, document: Document, reason: Reason, message: str = "") -> None:
        if not document.ended:
            self._scheduler.leave(document)
            self._close(document, reason, message)

    def _close(self, document: Document, reason: Reason, message: str) -> None:
        document.ended = True
        self.shelf.give_back(document.lease)
        self._counts.note_end(reason)
        self._heard.append((document, Ended(reason, message, document.usage)))

    def _end_all(self) -> None:
        self._receive()
        for document in self._scheduler.documents():
            self._end(document, "cancelled")
        self._tell()

    def _run(self) -> None:
        with evaluating(self.model):
            while not self._closed:
                self._wake.clear()
                if not self._guarded_step() and not self._closed:
                    self._wake.wait(LOOK if self._scheduler.waiting else None)
        self._end_all()

    def _guarded_step(self) -> bool:
        """The engine goes on whatever happens: an error outside of any pass ends all that it had."""
        try:
            return self.step()
        except Exception:
            logger.exception("a step failed")
            self._start_over("the engine failed, and goes on with new requests")
            return True

    def _start_over(self, message: str) -> None:
        """With new books, since the old ones may be wrong."""
        before, self._scheduler = self._scheduler, self._scheduler.anew()
        for document in before.running:
            self.shelf.unpin(document.lease)
        for document in before.documents():
            self._close(document, "error", message)
        self._tell()

    def _withdraw(self, document: Document) -> None:
        self._withdrawn.append(document)
        self._wake.set()

    def _document(self, request: Request, listener: Listener, lease: Lease, room: int) -> Document:
        root = prefix.root(self._base, lease.adapters, request.tenant)
        ends_at = None if request.deadline is None else time.monotonic() + request.deadline
        return Document.of(request, listener, lease, room, ends_at, root)

    def longest(self, prompt: int) -> int:
        """How many tokens can be written after a prompt of so many; below 1 where it has no room itself.

        The last one is never read, so it needs neither position nor block.
        """
        return min([self._held, *self._contexts()]) - prompt + 1

    def _room(self, request: Request) -> int:
        """How many tokens may be written."""
        prompt, contexts = len(request.tokens), self._contexts()
        if contexts and prompt > min(contexts):
            raise RequestError(f"tokens: a prompt of {prompt}, and at most {min(contexts)} are read; shorten it")
        room = min([request.max_tokens, *(most - prompt + 1 for most in contexts)])
        if prompt + room - 1 > self._held:
            raise RequestError(
                f"tokens: {prompt} and {room} to be written, and the cache holds {self._held}; ask for fewer tokens"
            )
        return room

    def _contexts(self) -> list[int]:
        return [most for most in (self.limits.context, context_limit(self.model)) if most is not None]

    @property
    def _held(self) -> int:
        """Tokens that the cache has room for."""
        return self._scheduler.blocks.count * BLOCK

    def _require_place(self) -> None:
        if self._closed:
            raise RunError("the engine is closed")
        waiting = len(self._inbox) + self._scheduler.waiting
        if waiting >= self.limits.queue + max(0, self.limits.running - len(self._scheduler.running)):
            raise QueueFullError(f"{waiting} requests wait, as many as may; try again later")
