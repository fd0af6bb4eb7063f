"""What the evidence may claim: exact p values, intervals that cover, and a learning rate that is never at the edge."""

import math

import numpy as np
import pytest

from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.statistics import equivalent, holm, interval, sign_flip_p
from benchmarks.evidence.tuning import POINTS, tune


def test_sign_flips_are_counted_exactly():
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    assert sign_flip_p([1.0] * 10) == 2 / 1024
    assert sign_flip_p([1, -1, 1, -1]) == 1


def test_holm_multiplies_the_smallest_most_and_never_falls():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": pytest.approx(0.03), "c": 0.06, "b": 0.06}


def test_an_interval_of_95_percent_covers_the_mean_about_so_often():
    """Of 300 samples of ten; the bootstrap of ten covers a little less (0.90 to 0.93)."""
    draws = np.random.default_rng(1).normal(2.0, 1.0, (300, 10))
    covered = sum(found.low <= 2 <= found.high for found in (interval(sample.tolist()) for sample in draws))
    assert 0.86 <= covered / 300 <= 0.97


def test_arms_are_called_equivalent_only_within_the_margin():
    assert equivalent([0.001, -0.002, 0.0, 0.001], 0.01)
    assert not equivalent([0.02, -0.02, 0.03, -0.01], 0.01)


@pytest.mark.parametrize("best", [2e-4, 2e-3, 2e-6])
def test_the_window_moves_until_the_best_lies_inside(best: float):
    def score(rate: float, seed: int) -> float:
        return -abs(math.log(rate / best)) + 0.01 * seed

    tuned = tune(2e-4, range(2), score)
    assert tuned.inside
    assert len(tuned.window) == POINTS
    assert abs(math.log(tuned.best / best)) <= 0.6


def test_a_best_that_stays_at_the_edge_is_told():
    assert not tune(2e-4, range(1), lambda rate, seed: rate).inside


def test_what_was_done_is_not_done_again(tmp_path):
    ledger = Ledger.at(tmp_path / "runs.jsonl")
    assert ledger.get("a", lambda: {"score": 1})["score"] == 1
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"key": "b", "sco')
    again = Ledger.at(tmp_path / "runs.jsonl")
    assert again.get("a", lambda: {"score": 2})["score"] == 1
    assert again.get("b", lambda: {"score": 3})["score"] == 3
    assert Ledger.at(tmp_path / "runs.jsonl").done.keys() == {"a", "b"}
