"""The order of rows is a function of its arguments, and every step is known before the first."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorica.data import epoch_order, micro_batches, rectangles, steps
from lorica.errors import DataError

lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=40)
seeds = st.integers(-5, 2**63)


def philox4x64(key: tuple[int, int], blocks: int) -> list[int]:
    """Salmon et al. 2011, section 3.3 with ten rounds, written out in integers; the counter starts at 1."""
    word, words = (1 << 64) - 1, []
    for counter in range(1, blocks + 1):
        x0, x1, x2, x3 = counter, 0, 0, 0
        k0, k1 = key
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
            x0, x1, x2, x3 = (p1 >> 64) ^ x1 ^ k0, p1 & word, (p0 >> 64) ^ x3 ^ k1, p0 & word
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & word, (k1 + 0xBB67AE8584CAA73B) & word
        words += [x0, x1, x2, x3]
    return words


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (-1, 12), (2**63, 1)])
def test_the_order_sorts_the_published_generator_s_words(seed, epoch):
    words = philox4x64((seed % 2**64, epoch), 25)[:99]
    assert epoch_order([1] * 99, seed, epoch).tolist() == sorted(range(99), key=words.__getitem__)


@given(lengths_of_rows, seeds, st.integers(0, 9))
def test_the_order_is_a_permutation_and_repeats_whatever_else_draws_numbers(lengths, seed, epoch):
    first = epoch_order(lengths, seed, epoch)
    np.random.default_rng(0).random(5)
    assert sorted(first) == list(range(len(lengths)))
    assert first.tolist() == epoch_order(lengths, seed, epoch).tolist()


def test_orders_differ_between_epochs_and_between_seeds():
    orders = {tuple(epoch_order(range(50), seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(lengths_of_rows, st.integers(1, 9), st.integers(1, 3), seeds)
def test_each_epoch_takes_every_row_once_in_steps_of_the_size_asked_for(lengths, rows, epochs, seed):
    schedule = steps(lengths, rows_per_step=rows, epochs=epochs, seed=seed)
    per_epoch = len(schedule) // epochs
    for epoch in range(epochs):
        parts = [schedule[epoch * per_epoch + j] for j in range(per_epoch)]
        assert [len(part) for part in parts[:-1]] == [rows] * (per_epoch - 1)
        assert [i for part in parts for i in part] == epoch_order(lengths, seed, epoch).tolist()


@given(lengths_of_rows, st.integers(40, 100), st.integers(1, 3), seeds)
def test_a_ceiling_on_tokens_is_kept_and_filled(lengths, ceiling, epochs, seed):
    schedule = list(steps(lengths, tokens_per_step=ceiling, epochs=epochs, seed=seed))
    order = [i for epoch in range(epochs) for i in epoch_order(lengths, seed, epoch).tolist()]
    assert [i for part in schedule for i in part] == order
    done = 0
    for part, following in zip(schedule, [*schedule[1:], ()], strict=True):
        assert sum(lengths[i] for i in part) <= ceiling
        done += len(part)
        if following and done % len(lengths):
            assert sum(lengths[i] for i in part) + lengths[following[0]] > ceiling


@given(lengths_of_rows, st.integers(1, 30), st.sampled_from([{"rows_per_step": 3}, {"tokens_per_step": 64}]), seeds)
def test_a_number_of_steps_is_the_beginning_of_endless_epochs(lengths, count, size, seed):
    schedule = steps(lengths, **size, steps=count, seed=seed)
    endless = steps(lengths, **size, epochs=count, seed=seed)
    assert list(schedule) == [endless[i] for i in range(count)]


@given(lengths_of_rows, st.data())
def test_steps_can_be_read_in_any_order(lengths, data):
    schedule = steps(lengths, tokens_per_step=50, epochs=4, seed=3)
    asked = data.draw(st.lists(st.integers(0, len(schedule) - 1), max_size=8))
    plain = list(steps(lengths, tokens_per_step=50, epochs=4, seed=3))
    assert [schedule[i] for i in asked] == [plain[i] for i in asked]


def test_the_epoch_is_whole_exactly_when_its_last_row_is_done():
    schedule = steps([1] * 7, rows_per_step=3, epochs=3, seed=0)
    assert [schedule.epoch_of(i) for i in range(len(schedule))] == [
        epoch + done for epoch in range(3) for done in (3 / 7, 6 / 7, 1.0)
    ]


def test_part_of_an_epoch_is_rounded_up_to_a_step():
    assert len(steps([1] * 10, rows_per_step=2, epochs=0.5, seed=0)) == 3
    assert len(steps([1] * 10, rows_per_step=2, epochs=1.4, seed=0)) == 7


def test_a_step_beyond_the_last_is_an_index_error():
    schedule = steps([1] * 4, rows_per_step=2, epochs=1, seed=0)
    assert schedule[-1] == schedule[1]
    with pytest.raises(IndexError):
        schedule[2]


@pytest.mark.parametrize(
    ("lengths", "given_", "said"),
    [
        ([], {"rows_per_step": 2, "epochs": 1}, "no rows"),
        ([1], {"epochs": 1}, "one of rows_per_step and tokens_per_step"),
        ([1], {"rows_per_step": 1, "tokens_per_step": 9, "epochs": 1}, "one of rows_per_step and tokens_per_step"),
        ([1], {"rows_per_step": 1}, "one of epochs and steps"),
        ([1], {"rows_per_step": 0, "epochs": 1}, "rows_per_step: 0"),
        ([1], {"rows_per_step": 1, "epochs": float("inf")}, "epochs: inf"),
        ([9], {"tokens_per_step": 8, "epochs": 1}, "raise it to 9"),
    ],
)
def test_what_makes_no_plan_says_why(lengths, given_, said):
    with pytest.raises(DataError, match=said):
        steps(lengths, **given_, seed=0)


@given(lengths_of_rows, st.integers(1, 60) | st.none())
def test_micro_batches_are_the_step_cut_in_order_within_the_bound(lengths, bound):
    indices = epoch_order(lengths, 0, 0).tolist()
    parts = micro_batches(indices, lengths, bound)
    assert [i for part in parts for i in part] == indices
    for part in parts:
        assert len(part) == 1 or bound is None or sum(lengths[i] for i in part) <= bound
    assert bound is not None or len(parts) == 1


@given(lengths_of_rows, st.integers(1, 60) | st.none(), st.integers(0, 40))
def test_rectangles_hold_each_row_once_within_the_bound_padding_included(lengths, bound, overhead):
    parts = rectangles(range(len(lengths)), lengths, bound, overhead=overhead)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or bound is None or len(part) * max(lengths[i] for i in part) <= bound


def test_rectangles_are_the_cheapest_of_all_cuts_of_the_rows_by_length():
    lengths, overhead = [3, 9, 4, 30, 28, 5, 9], 11

    def cost(parts):
        return sum(overhead + len(part) * max(lengths[i] for i in part) for part in parts)

    ordered = sorted(range(7), key=lengths.__getitem__)
    cuts = [
        [ordered[a:b] for a, b in pairwise([0, *[n + 1 for n in range(6) if places >> n & 1], 7])]
        for places in range(2**6)
    ]
    assert cost(rectangles(range(7), lengths, None, overhead=overhead)) == min(map(cost, cuts))
    assert len(rectangles(range(7), lengths, None, overhead=10**6)) == 1


def test_an_empty_step_has_no_micro_batches():
    assert micro_batches((), [], 8) == ()
    assert rectangles((), [], 8) == ()
