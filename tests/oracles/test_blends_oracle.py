"""What prunes and joins deltas computes what the papers say, entry by entry."""

import pytest
import torch
from blends import arithmetic, dare, disjoint_mean, elect, ties, trim
from torch import Tensor

from lorica.adapter.pruning import dropped, elected, summed, trimmed

SHAPE = 7, 9
EXACT = {"rtol": 0, "atol": 1e-14}


def deltas(count: int = 3) -> list[Tensor]:
    return [torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(t)) for t in range(count)]


def flat(delta: Tensor) -> list[float]:
    return delta.flatten().tolist()


def shaped(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(SHAPE)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.77, 1.0])
def test_trimming_keeps_the_top_share(share: float) -> None:
    for delta in deltas():
        assert torch.equal(trimmed(delta, share), shaped(trim(flat(delta), share)))


def test_each_of_several_matrices_is_trimmed_by_itself() -> None:
    small, large = deltas(2)
    both = trimmed(torch.stack([small, 100 * large]), 0.3)
    torch.testing.assert_close(both, torch.stack([trimmed(small, 0.3), 100 * trimmed(large, 0.3)]), **EXACT)


def test_the_weighted_sum_is_task_arithmetic() -> None:
    weights = [0.7, -0.3, 1.1]
    expected = shaped(arithmetic([flat(d) for d in deltas()], weights))
    torch.testing.assert_close(summed(deltas(), weights), expected, **EXACT)


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_with_equal_weights_it_is_ties_with_lambda_their_sum(share: float) -> None:
    kept = [trimmed(delta, share) for delta in deltas()]
    expected = shaped(ties([flat(d) for d in deltas()], share, scale=3 * 0.4))
    assert bool(expected.any())
    torch.testing.assert_close(elected(kept, [0.4, 0.4, 0.4]), expected, **EXACT)


def test_a_weight_of_two_is_two_votes_and_a_negative_one_a_vote_for_the_opposite() -> None:
    a, b, c = deltas()
    voters = [flat(a), flat(a), flat(b), flat(-c), flat(-c), flat(-c)]
    expected = shaped([6 * value for value in disjoint_mean(voters, elect(voters))])
    torch.testing.assert_close(elected([a, b, c], [2.0, 1.0, -3.0]), expected, **EXACT)


def test_where_all_agree_the_elected_mean_is_the_blend_itself() -> None:
    same = [delta.abs() for delta in deltas(2)]
    torch.testing.assert_close(elected(same, [0.7, 0.3]), summed(same, [0.7, 0.3]), **EXACT)


def test_nothing_is_elected_where_signs_weigh_the_same() -> None:
    a = deltas(1)[0]
    assert not elected([a, -a], [1.0, 1.0]).any()


def test_dropping_leaves_zero_or_the_rescaled_entry() -> None:
    delta, density = deltas(1)[0], 0.3
    found = dropped(delta, density, torch.Generator().manual_seed(5))
    gone = (found == 0).flatten().tolist()
    assert 0 < sum(gone) < len(gone)
    torch.testing.assert_close(found, shaped(dare(flat(delta), gone, 1 - density)), **EXACT)


def test_the_share_that_is_dropped_is_one_minus_the_density_and_the_expectation_stays() -> None:
    """Of n entries the kept are binomial: five standard deviations."""
    n, density = 100_000, 0.2
    found = dropped(torch.ones(1, n, dtype=torch.float64), density, torch.Generator().manual_seed(6))
    deviation = (density * (1 - density) / n) ** 0.5
    assert abs(float((found != 0).double().mean()) - density) < 5 * deviation
    assert abs(float(found.mean()) - 1) < 5 * deviation / density
