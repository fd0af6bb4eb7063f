"""The books of blocks: none is lost, none is written while another reads it, and keys tell whose a block is."""

import itertools
import random

import pytest

from lorica.serve.engine.blocks import Blocks
from lorica.serve.engine.prefix import chained, root


def keys(*names):
    return [name.encode() for name in names]


def test_a_sealed_block_is_found_again_after_its_document_is_gone():
    blocks = Blocks(4)
    own = [blocks.take(), blocks.take()]
    blocks.seal(own[0], b"a")
    blocks.seal(own[1], b"b")
    blocks.drop(own)
    assert (blocks.free, blocks.kept, blocks.available) == (2, 2, 4)
    assert blocks.reuse(keys("a", "b", "c")) == own
    assert (blocks.free, blocks.kept, blocks.available) == (2, 0, 2)


def test_reuse_ends_at_the_first_block_that_is_not_here():
    blocks = Blocks(4)
    own = [blocks.take(), blocks.take()]
    blocks.seal(own[1], b"b")
    assert blocks.reuse(keys("a", "b")) == []


def test_a_block_that_several_hold_stays_until_the_last_lets_go():
    blocks = Blocks(1)
    own = [blocks.take()]
    blocks.seal(own[0], b"a")
    assert blocks.reuse(keys("a")) == own
    blocks.drop(own)
    assert blocks.take() is None
    blocks.drop(own)
    assert blocks.take() == own[0]
    assert blocks.reuse(keys("a")) == []


def test_what_nobody_has_held_for_longest_is_forgotten_first_and_ends_before_beginnings():
    blocks = Blocks(4)
    old, new = [blocks.take(), blocks.take()], [blocks.take(), blocks.take()]
    for block, key in zip([*old, *new], keys("a", "b", "c", "d"), strict=True):
        blocks.seal(block, key)
    blocks.drop(old)
    blocks.drop(new)
    blocks.drop(blocks.reuse(keys("a", "b")))
    assert [blocks.take() for _ in range(4)] == [new[1], new[0], old[1], old[0]]


def test_no_block_is_ever_lost_or_given_twice():
    """1,000 random histories against plain sets; a taken block is nobody else's, and all come back."""
    for seed in range(1000):
        draw = random.Random(seed)
        blocks, documents, names = Blocks(6), [], itertools.count()
        for _ in range(40):
            if documents and draw.random() < 0.4:
                blocks.drop(documents.pop(draw.randrange(len(documents))))
            else:
                shared = blocks.reuse(keys(*(str(draw.randrange(4)) for _ in range(draw.randrange(3)))))
                taken = blocks.take()
                held = {block for document in documents for block in document}
                assert taken is None or taken not in held | set(shared)
                assert taken is not None or len(held | set(shared)) == 6
                documents.append([*shared, *([] if taken is None else [taken])])
                if taken is not None and draw.random() < 0.7:
                    blocks.seal(taken, str(next(names) % 8).encode())
            held = {block for document in documents for block in document}
            assert blocks.available == 6 - len(held)
        for document in documents:
            blocks.drop(document)
        assert len({blocks.take() for _ in range(6)} - {None}) == 6


ROOTS = {
    "the base": root("m", [], ""),
    "another base": root("n", [], ""),
    "an adapter": root("m", [("a#1", "d", 1.0)], ""),
    "its next generation": root("m", [("a#2", "d", 1.0)], ""),
    "another content": root("m", [("a#1", "e", 1.0)], ""),
    "another weight": root("m", [("a#1", "d", 0.5)], ""),
    "a blend": root("m", [("a#1", "d", 1.0), ("b#1", "d", 1.0)], ""),
    "a tenant": root("m", [], "a#1"),
    "a tenant that is named as an adapter is": root("m", [], "a#1d"),
    "an adapter for a tenant": root("m", [("a#1", "d", 1.0)], "t"),
    "parts shifted": root("m", [("a#1d", "", 1.0)], ""),
    "a base that is named as both": root("ma#1d", [], ""),
}


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ROOTS, 2)))
def test_beginnings_of_different_owners_have_different_keys(one, other):
    assert ROOTS[one] != ROOTS[other]


def test_a_key_tells_all_tokens_before_it():
    first = ROOTS["the base"]
    assert chained(chained(first, [1]), [2]) != chained(chained(first, [2]), [2])
    assert chained(first, [1, 2]) != chained(first, [1 + (2 << 32)])
    assert chained(first, [1]) == chained(first, [1])
