"""Random histories of an engine with few blocks: its books agree at every step, and every answer is right."""

import random
from functools import cache

import pytest

from lorica.errors import QueueFullError
from lorica.serve.engine.blocks import Blocks
from serve_bases import BLOCK_BYTES, answer, ask, engine_on, finish, prompt, shelf_of

CHOICES = (None, None, "lora", "dora")


@cache
def shelf():
    return shelf_of(*CHOICES[2:])


@cache
def expected(name, length, seed, temperature):
    return answer(name, prompt(length, seed), 24, temperature=temperature, seed=seed)


def agree(engine):
    """Every block is free, kept, or held by as many documents as the books say; who waits or ended holds none."""
    scheduler = engine._scheduler
    blocks, held = scheduler.blocks, [0] * scheduler.blocks.count
    for document in scheduler.running:
        assert not document.ended
        assert 16 * len(document.table) >= document.read
        for block in document.table:
            held[block] += 1
    assert held == blocks._holders
    assert sorted([*blocks._free, *blocks._kept, *(b for b, count in enumerate(held) if count)]) == [
        *range(blocks.count)
    ]
    assert all(not document.table and not document.read for document in scheduler.waiting_documents())
    written = [document.table[document.read // 16 :] for document in scheduler.running if document.unread]
    own = [block for table in written for block in table]
    assert len(own) == len(set(own)), "a block that is yet to be written has one holder"
    assert sum(kept.pins for kept in engine.shelf._tiers.kept) == sum(
        len(document.lease.parts) for document in scheduler.running
    )


def history(seed):
    draw = random.Random(seed)
    engine = engine_on(
        shelf(),
        cache_bytes=draw.choice([5, 9]) * BLOCK_BYTES,
        running=draw.choice([1, 3, 8]),
        queue=6,
        prompt_chunk=draw.choice([1, 5, 16, 64]),
        prompt_alone=draw.choice([7, 64]),
        quantum=draw.choice([10, 100]),
    )
    asked = []
    for _ in range(draw.randrange(20, 60)):
        what = draw.random()
        if what < 0.35:
            length, name, who = draw.choice([1, 16, 17, 33, 33]), draw.choice(CHOICES), draw.randrange(2)
            temperature, tokens = draw.choice([0.0, 0.8]), draw.randrange(1, 25)
            try:
                heard = ask(engine, prompt(length, who), tokens, name, temperature=temperature, seed=who)
            except QueueFullError:
                continue
            asked.append((heard, tokens, expected(name, length, who, temperature)))
        elif what < 0.42 and asked:
            draw.choice(asked)[0].ticket.cancel()
        else:
            engine.step()
            agree(engine)
    return engine, asked


def histories(seeds):
    for seed in seeds:
        finish(history(seed)[0], seconds=20)


EACH = 12
"""Histories a part: in fewer, some part has none that is preempted."""


@pytest.mark.parametrize("part", range(2))
def test_books_agree_and_answers_are_right(part):
    preempted = reused = 0
    for seed in range(EACH * part, EACH * part + EACH):
        engine, asked = history(seed)
        stats = finish(engine)
        agree(engine)
        for heard, tokens, whole in asked:
            assert heard.tokens == whole[: len(heard.tokens)], f"history {seed}"
            assert heard.end.reason == "cancelled" or len(heard.tokens) == tokens, f"history {seed}"
        assert stats.blocks_used == 0
        preempted, reused = preempted + stats.preempted, reused + stats.reused
    assert preempted > 0
    assert reused > 0
    assert all(each.in_flight == 0 for each in shelf().list())


def test_books_that_let_go_of_a_block_too_early_are_caught(monkeypatch):
    """The control: a block that two hold is given away when the first lets go."""

    def early(blocks, gone):
        for block in reversed(gone):
            blocks._holders[block] = 0
            blocks._leave(block)

    monkeypatch.setattr(Blocks, "drop", early)
    with pytest.raises(AssertionError):
        histories(range(50))
