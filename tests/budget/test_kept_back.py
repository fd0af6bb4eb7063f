"""What a CPU process holds beside its tensors: without the pool, and with it."""

from typing import Any

import pytest

from lorica.budget.kept_back import (
    A_LENGTH,
    A_TENSOR,
    A_TOKEN,
    FIXED,
    LARGEST_IN_HEAP,
    LIBRARIES,
    OF_MADE,
    beside_pool,
    kept_back,
)

PLAIN: dict[str, Any] = {
    "activations": 100_000_000,
    "block": [(2, 1_000_000), (3, 4_000_000)],
    "recomputed": 0,
    "length": 0,
    "apart": False,
    "gained": False,
}


def test_tensors_that_are_mappings_of_their_own_leave_nothing() -> None:
    large = [(2, LARGEST_IN_HEAP), (3, 2 * LARGEST_IN_HEAP)]
    for more in ({}, {"apart": True}, {"gained": True}, {"recomputed": 9}):
        assert kept_back(**{**PLAIN, "block": large, **more}) == FIXED


def test_of_a_block_with_some_large_tensors_the_small_ones_count() -> None:
    half = [(1, LARGEST_IN_HEAP), (2, LARGEST_IN_HEAP // 2)]
    whole, part = (kept_back(**{**PLAIN, "block": block}) - FIXED for block in ([(3, 1)], half))
    assert part == pytest.approx(whole / 2)


@pytest.mark.parametrize("more", [{"apart": True}, {"gained": True}, {"recomputed": 4}, {"activations": 200_000_000}])
def test_what_comes_and_goes_more_often_leaves_more(more: dict[str, Any]) -> None:
    assert kept_back(**{**PLAIN, **more}) > kept_back(**PLAIN)


def test_kernels_of_attention_grow_with_a_document() -> None:
    assert kept_back(**{**PLAIN, "length": 2048}) - kept_back(**PLAIN) == 2048 * A_LENGTH


def test_a_pool_keeps_a_64th_beside_what_libraries_take() -> None:
    plain: dict[str, Any] = {"length": 0, "made": False}
    assert beside_pool(0, 2, "float32", **plain) == LIBRARIES["float32"] + 2 * A_TENSOR
    assert beside_pool(64_000_000, 0, "bfloat16", **plain) == LIBRARIES["bfloat16"] + 1_000_000
    longer = beside_pool(0, 0, "bfloat16", length=512, made=True)
    assert longer == LIBRARIES["bfloat16"] + OF_MADE + 512 * A_TOKEN["bfloat16"]
