"""Beginnings that were computed are used again, by whom they belong to and by nobody else."""

import pytest

from lorica.serve.engine import prefix
from lorica.serve.engine.blocks import Blocks
from serve_bases import answer, ask, engine_on, finish, folder, prompt, shelf_of

LONG = prompt(40)


@pytest.fixture
def shelf():
    return shelf_of("lora", "dora")


def reused(engine, tokens=LONG, choice=None, **options):
    heard = ask(engine, tokens, 3, choice, **options)
    finish(engine)
    assert heard.end.reason == "length"
    return heard.end.usage.reused


def test_a_prompt_that_was_read_before_is_not_read_again(shelf):
    engine = engine_on(shelf)
    assert reused(engine, choice="lora") == 0
    read = engine.stats().read
    heard = ask(engine, LONG, 20, "lora")
    stats = finish(engine)
    assert heard.end.usage.reused == stats.reused == 32
    assert stats.read - read == 40 - 32 + 19
    assert heard.tokens == answer("lora", LONG, 20)


def test_a_prompt_of_whole_blocks_is_read_up_to_its_last_token(shelf):
    """The next token is chosen by what comes out for the last: one block is computed again."""
    engine = engine_on(shelf)
    reused(engine, prompt(32))
    heard = ask(engine, prompt(32), 5)
    finish(engine)
    assert heard.end.usage.reused == 16
    assert heard.tokens == answer(None, prompt(32), 5)


def test_an_answer_is_a_beginning_of_the_next_turn_of_a_chat(shelf):
    engine = engine_on(shelf)
    first = ask(engine, prompt(20), 20)
    finish(engine)
    turn = (*prompt(20), *first.tokens, *prompt(6))
    heard = ask(engine, turn, 5)
    finish(engine)
    assert heard.end.usage.reused == 32
    assert heard.tokens == answer(None, turn, 5)


def test_another_ending_shares_the_beginning(shelf):
    engine = engine_on(shelf)
    reused(engine)
    other = (*LONG[:20], *prompt(15, 3))
    heard = ask(engine, other, 5)
    finish(engine)
    assert heard.end.usage.reused == 16
    assert heard.tokens == answer(None, other, 5)


def test_documents_share_a_beginning_while_both_run(shelf):
    engine = engine_on(shelf)
    first = ask(engine, LONG, 20)
    engine.step()
    second = ask(engine, LONG, 20)
    engine.step()
    assert engine.stats().blocks_used == 4, "three blocks of the first, two of them shared, and one of the second"
    finish(engine)
    assert first.tokens == second.tokens == answer(None, LONG, 20)


OWNERS = [
    {},
    {"choice": "lora"},
    {"choice": "dora"},
    {"choice": {"lora": 0.5}},
    {"choice": {"lora": 0.5, "dora": 0.5}},
    {"choice": {"lora": 0.25, "dora": 0.5}},
    {"tenant": "anne"},
    {"tenant": "bert"},
    {"choice": "lora", "tenant": "anne"},
]


def leaks(shelf):
    """What each owner is given of what the others before it have computed."""
    engine = engine_on(shelf, cache_bytes=1 << 20)
    return [reused(engine, **owner) for owner in OWNERS]


def test_nothing_leaks_between_adapters_blends_and_tenants(shelf):
    assert leaks(shelf) == [0] * len(OWNERS)


def test_every_owner_finds_its_own_again(shelf):
    engine = engine_on(shelf, cache_bytes=1 << 20)
    for owner in OWNERS:
        reused(engine, **owner)
    assert [reused(engine, **owner) for owner in OWNERS] == [32] * len(OWNERS)


@pytest.mark.parametrize("part", ["adapters", "tenant"])
def test_a_key_without_one_of_its_parts_would_leak(shelf, part, monkeypatch):
    """The control of the two above."""
    original = prefix.root

    def sabotaged(base, adapters, tenant):
        return original(base, [] if part == "adapters" else adapters, "" if part == "tenant" else tenant)

    monkeypatch.setattr(prefix, "root", sabotaged)
    assert any(leaks(shelf)[1:])


def mixed_generations(shelf, monkeypatch=None):
    """An adapter is replaced while it answers: (first, the same prompt again, expected of the old, of the new)."""
    engine = engine_on(shelf)
    old = ask(engine, LONG, 20, "lora")
    for _ in range(5):
        engine.step()
    shelf.replace_own("lora", folder("lora", noise=1))
    new = ask(engine, LONG, 20, "lora")
    finish(engine)
    return old, new


def test_a_replacement_in_mid_stream_mixes_no_generations(shelf):
    old, new = mixed_generations(shelf)
    assert old.tokens == answer("lora", LONG, 20)
    assert new.tokens == answer("lora", LONG, 20, noise=1) != old.tokens
    assert new.end.usage.reused == 0


def test_a_key_by_name_alone_would_mix_them(shelf, monkeypatch):
    """The control: what others do."""
    original = prefix.root
    names = lambda adapters: [(key.partition("#")[0], "", weight) for key, _, weight in adapters]  # noqa: E731
    monkeypatch.setattr(prefix, "root", lambda base, adapters, tenant: original(base, names(adapters), tenant))
    old, new = mixed_generations(shelf)
    assert old.tokens == answer("lora", LONG, 20)
    assert new.end.usage.reused == 32
    assert new.tokens != answer("lora", LONG, 20, noise=1)


def test_blocks_that_are_kept_make_room_for_new_documents(shelf):
    engine = engine_on(shelf)
    for seed in range(20):
        heard = ask(engine, prompt(40, seed), 3)
        finish(engine)
        assert heard.tokens == answer(None, prompt(40, seed), 3)
    stats = engine.stats()
    assert stats.blocks_kept + stats.blocks_free == 32
    assert reused(engine, prompt(40, 0)) == 0
    assert reused(engine, prompt(40, 19)) == 32


def test_a_block_that_is_sealed_before_it_was_written_would_be_read(shelf, monkeypatch):
    """The control of sharing full blocks alone: books that share what is not computed yet give wrong answers."""
    original = Blocks.take

    def hasty(blocks):
        block = original(blocks)
        if block is not None:
            for key in pending:
                blocks.seal(block, key)
                pending.remove(key)
                break
        return block

    pending = []
    from lorica.serve.engine.document import Document

    tracked = Document.keys_up_to

    def noted(document, count):
        found = tracked(document, count)
        if document.read == 0 and not document.table:
            pending[:] = list(found)
        return found

    monkeypatch.setattr(Document, "keys_up_to", noted)
    monkeypatch.setattr(Blocks, "take", hasty)
    engine = engine_on(shelf, prompt_alone=4, prompt_chunk=4)
    first = ask(engine, LONG, 5)
    engine.step()
    second = ask(engine, LONG, 5)
    finish(engine)
    assert (first.tokens, second.tokens) != (answer(None, LONG, 5), answer(None, LONG, 5))
