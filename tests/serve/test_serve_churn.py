"""Clients ask, leave and come back while adapters are loaded, replaced and unloaded under them."""

import random
import threading
import time

import pytest
from test_serve_engine import wait_for

from lorica.errors import UnknownAdapterError
from lorica.serve.engine import Request
from lorica.serve.engine import prefix as prefix_module
from serve_bases import Heard, answer, engine_on, folder, prompt, shelf_of

SECONDS, ANSWERS, MOST_SECONDS = 4, 50, 60


class Leased:
    """Notes the generation that each request is given, which alone may answer it."""

    def __init__(self, shelf, monkeypatch):
        self.by_thread = threading.local()
        original = shelf.lease

        def noted(choice):
            lease = original(choice)
            self.by_thread.last = [kept.generation for kept, _ in lease.parts]
            return lease

        monkeypatch.setattr(shelf, "lease", noted)

    @property
    def last(self):
        return tuple(self.by_thread.last)


def churned(monkeypatch):
    """(shelf, engine, [(heard, prompt, generations)], noise of each generation): so long, and longer for as many."""
    shelf = shelf_of("lora", "dora", "wide")
    leased, engine = Leased(shelf, monkeypatch), engine_on(shelf, running=6)
    noise_of, asked, began = {}, [], time.monotonic()
    for name in ("lora", "dora"):
        folder(name, noise=1)

    def enough():
        passed = time.monotonic() - began
        return passed > MOST_SECONDS or (passed > SECONDS and len(asked) > ANSWERS and len(noise_of) > 3)

    def churn():
        for turn in range(1_000_000):
            if enough():
                return
            name = ("lora", "dora")[turn % 2]
            made = shelf.replace_own(name, folder(name, noise=turn // 2 % 2))
            noise_of[made.key] = turn // 2 % 2
            shelf.load_own("more", folder("ia3"))
            shelf.unload("more")

    def client(seed):
        draw = random.Random(seed)
        while not enough():
            heard, tokens = Heard(), prompt(draw.choice([20, 33]), draw.randrange(2))
            name = draw.choice([None, "lora", "dora", "wide", "more"])
            try:
                ticket = engine.submit(Request(tokens=tokens, max_tokens=8, choice=name), heard)
            except UnknownAdapterError:
                assert name == "more"
                continue
            asked.append((heard, tokens, leased.last))
            if draw.random() < 0.2:
                time.sleep(0.01)
                ticket.cancel()
            wait_for(lambda heard=heard: heard.end)

    with engine:
        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
        threads.append(threading.Thread(target=churn))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return shelf, engine, asked, noise_of


def wrong(asked, noise_of):
    """Answers that are not those of exactly their generation."""
    found = []
    for heard, tokens, generations in asked:
        name = {"more": "ia3"}.get(generations[0].name, generations[0].name) if generations else None
        noise = noise_of.get(generations[0].key, 0) if generations else 0
        expected = answer(name, tokens, 8, noise=noise)
        if heard.tokens != expected[: len(heard.tokens)]:
            found.append((name, heard.tokens, expected))
    return found


def test_every_answer_is_that_of_exactly_its_generation(monkeypatch):
    shelf, engine, asked, noise_of = churned(monkeypatch)
    assert len(asked) > ANSWERS
    assert len(noise_of) > 3
    assert wrong(asked, noise_of) == []
    assert {heard.end.reason for heard, _, _ in asked} == {"length", "cancelled"}
    wait_for(lambda: len(shelf.bank.names) == 3)
    stats = engine.stats()
    assert (stats.blocks_used, stats.running, stats.waiting) == (0, 0, 0)
    assert stats.reused > 0
    assert all(each.in_flight == 0 for each in shelf.list())
    assert len(shelf.list()) == 3


def test_with_keys_by_name_alone_answers_would_be_wrong(monkeypatch):
    """The control."""
    original = prefix_module.root
    by_name = lambda adapters: [(key.partition("#")[0], "", weight) for key, _, weight in adapters]  # noqa: E731
    monkeypatch.setattr(prefix_module, "root", lambda base, adapters, who: original(base, by_name(adapters), who))
    for _ in range(5):
        with monkeypatch.context() as patch:
            _, _, asked, noise_of = churned(patch)
        if wrong(asked, noise_of):
            return
    pytest.fail("no answer was wrong")
