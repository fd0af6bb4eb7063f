"""Bases of others are served through their own forward, and a merged adapter is served alone."""

import pytest

from lorica import adapter
from lorica.errors import AdapterError, RequestError, UnknownAdapterError
from lorica.models import generate
from lorica.serve.engine import Engine, Limits, Merged, Shelf
from serve_bases import answer, ask, engine_on, finish, folder, prompt
from tiny_bases import GPT2, OPT

NAMES = ("lora", "ia3")


@pytest.fixture(scope="module", params=[GPT2, OPT], ids=repr)
def base(request):
    return request.param


@pytest.fixture(scope="module")
def engine(base):
    shelf = Shelf(adapter.Bank(base.build()))
    for name in NAMES:
        shelf.load_own(name, folder(name, base=base))
    return engine_on(shelf)


def test_every_request_is_answered_as_generate_answers_it(base, engine):
    options = [{}, {"temperature": 0.8, "seed": 3}, {"temperature": 0.8, "seed": 4, "top_k": 9}]
    heard = [
        (name, length, each, ask(engine, prompt(length), 6, name, **each))
        for name in (None, *NAMES)
        for length in (1, 9)
        for each in options
    ]
    finish(engine)
    for name, length, each, found in heard:
        assert found.tokens == answer(name, prompt(length), 6, base=base, **each)
        assert found.end.reason in ("length", "stop")
        assert found.end.usage.reused == 0
    told = {name: [found.tokens for own, _, _, found in heard if own == name] for name in (None, *NAMES)}
    assert told["lora"] != told[None] != told["ia3"]


def test_a_blend_is_the_banks(base, engine):
    weights = {"lora": 0.6, "ia3": 0.3}
    bank = adapter.Bank(base.build())
    for name in weights:
        bank.add(name, folder(name, base=base))
    with bank.use(weights) as model:
        (expected,) = generate(model, [list(prompt(9))], 6, stop_ids=())
    heard = ask(engine, prompt(9), 6, weights)
    finish(engine)
    assert heard.tokens == expected


def test_a_stop_token_ends_it(base, engine):
    free = answer("lora", prompt(9), 6, base=base)
    heard = ask(engine, prompt(9), 6, "lora", stop_ids=frozenset({free[2]}))
    finish(engine)
    assert heard.tokens == free[: free.index(free[2]) + 1]
    assert heard.end.reason == "stop"


def test_what_waits_can_be_cancelled(engine):
    first, second = ask(engine, prompt(9), 6), ask(engine, prompt(9), 6)
    second.ticket.cancel()
    finish(engine)
    assert (first.end.reason, second.end.reason) == ("length", "cancelled")


def test_what_its_generation_does_not_tell_is_refused(engine):
    with pytest.raises(RequestError, match="logprobs"):
        ask(engine, prompt(9), 6, logprobs=2)


def test_a_base_that_does_not_write_fails_its_request_and_goes_on(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "can_generate", lambda: False, raising=False)
    failed = ask(engine, prompt(9), 6)
    finish(engine)
    monkeypatch.undo()
    again = ask(engine, prompt(9), 6)
    finish(engine)
    assert failed.end.reason == "error"
    assert "does not generate" in failed.end.message
    assert again.end.reason == "length"


@pytest.fixture
def merged():
    from serve_bases import SERVED

    attached = adapter.load(SERVED.build(), folder("lora"))
    return Engine(attached.merge(), Merged("lora", method="lora"), Limits(cache_bytes=1 << 20))


def test_a_merged_adapter_is_answered_as_the_adapter_is(merged):
    heard = [ask(merged, prompt(length), 12, "lora") for length in (3, 20)]
    finish(merged)
    for found, length in zip(heard, (3, 20), strict=True):
        assert found.tokens == answer("lora", prompt(length), 12)
    (found,) = merged.shelf.list()
    assert (found.name, found.state, found.tier) == ("lora", "ready", "device")


@pytest.mark.parametrize("choice", [None, "dora", {"lora": 0.5}, {"lora": 1.0, "dora": 1.0}])
def test_a_merged_base_serves_nothing_else(merged, choice):
    with pytest.raises(UnknownAdapterError, match="'lora' is merged"):
        ask(merged, prompt(3), 3, choice)


def test_a_merged_base_takes_no_adapters(merged):
    for change in (merged.shelf.load, merged.shelf.replace):
        with pytest.raises(AdapterError, match="merged into the weights"):
            change("dora", folder("dora"))
    with pytest.raises(AdapterError, match="merged into the weights"):
        merged.shelf.unload("lora")
