"""Each check of combining and resizing rejects the mistake that it is there for."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import test_adapter_combine as combining
import test_adapter_resize as resizing
import torch

from lorica.adapter import combine, outcome, pruning
from lorica.adapter.overlap import Subspaces
from lorica.adapter.resize import Cut
from lorica.adapter.spectra import Product, Spectrum

folders = combining.folders


@dataclass(frozen=True)
class Mistake:
    """What is put in the place of `target`, and the test that has to see it."""

    owner: Any
    name: str
    wrong: Any
    check: Callable[..., None]
    given: tuple[tuple[str, Any], ...] = ()


def unscaled(cls, factors):
    return cls(factors.B.detach().double(), factors.A.detach().double())


def smallest(self, r):
    turned = replace(self, U=self.U.flip(-1), S=self.S.flip(-1), Vt=self.Vt.flip(-2))
    return CUT(turned, r)


def not_recentred(deltas, weights):
    """The mean over all that are left, whatever their sign."""
    left = sum(((w * d) != 0).double() for w, d in zip(weights, deltas, strict=True))
    return sum(map(abs, weights)) * pruning.summed(deltas, weights) / left.clamp_min(1)


def smallest_kept(delta, density):
    return delta - pruning.trimmed(delta, 1 - density)


def not_rescaled(delta, density, generator):
    return density * DROPPED(delta, density, generator)


def always_the_same(delta, part, name, how):
    return DROPPED(delta, how.kept, torch.Generator().manual_seed(0))


CUT, DROPPED, SPACES = Spectrum.cut, pruning.dropped, Subspaces.of
DARE = combine.PRUNING["dare"][1]
MISTAKES = {
    "weights in both factors": Mistake(
        Product,
        "times",
        lambda self, weight: Product(weight * self.B, weight * self.A),
        combining.test_the_exact_blend_is_the_weighted_sum_of_the_deltas,
    ),
    "the scale forgotten": Mistake(
        Product, "of", classmethod(unscaled), combining.test_the_exact_blend_is_the_weighted_sum_of_the_deltas
    ),
    "the scale forgotten, beside a bank": Mistake(
        Product, "of", classmethod(unscaled), combining.test_it_answers_as_the_bank_does_with_the_same_blend
    ),
    "the smallest triplets": Mistake(
        Spectrum, "cut", smallest, combining.test_svd_is_the_best_of_its_rank, (("r", 3),)
    ),
    "the smallest triplets of one": Mistake(
        Spectrum, "cut", smallest, resizing.test_the_result_is_the_best_of_its_rank, (("r", 3),)
    ),
    "one rank too few": Mistake(
        Spectrum, "cut", lambda self, r: CUT(self, r - 1), combining.test_svd_is_the_best_of_its_rank, (("r", 3),)
    ),
    "an error of something else": Mistake(
        combine.Joined,
        "error",
        property(lambda self: 1 - self.energy),
        combining.test_the_error_that_is_told_is_that_of_the_dense_matrices,
        (("how", "svd"),),
    ),
    "an error that is always small": Mistake(
        outcome,
        "total_error",
        lambda sites: 0.0,
        combining.test_the_error_that_is_told_is_that_of_the_dense_matrices,
        (("how", "dare"),),
    ),
    "an error of one that is resized": Mistake(
        Cut,
        "error",
        property(lambda self: 1 - self.energy),
        resizing.test_the_result_is_the_best_of_its_rank,
        (("r", 3),),
    ),
    "no election": Mistake(
        combine,
        "PRUNING",
        {**combine.PRUNING, "ties": (combine.PRUNING["ties"][0], not_recentred)},
        combining.test_ties_is_the_papers_site_by_site,
    ),
    "the smallest entries": Mistake(
        combine,
        "trimmed",
        smallest_kept,
        combining.test_ties_is_the_papers_site_by_site,
    ),
    "no rescaling": Mistake(
        combine,
        "dropped",
        not_rescaled,
        combining.test_dare_of_one_adapter_is_its_delta_with_entries_dropped_and_the_rest_rescaled,
    ),
    "entries dropped whatever the seed": Mistake(
        combine,
        "PRUNING",
        {**combine.PRUNING, "dare": (always_the_same, DARE)},
        combining.test_what_dare_drops_follows_from_the_seed_and_from_no_order,
    ),
    "energy of values and not of squares": Mistake(
        Spectrum,
        "rank_with",
        lambda self, energy: 1 + int((self.values.cumsum(0) < energy * self.values.sum()).sum()),
        resizing.test_every_site_has_the_least_rank_that_keeps_the_energy,
        (("energy", 0.9),),
    ),
    "subspaces of what is not in common": Mistake(
        Subspaces,
        "of",
        classmethod(lambda cls, one, other: SPACES(one[:, :2], other[:, :2])),
        resizing.test_overlap_is_that_of_the_dense_deltas,
    ),
    "cancelled adapters left in place": Mistake(
        combine,
        "_blend",
        lambda parts, name: combine.together(p.deltas[name].product.times(p.weight) for p in parts),
        combining.test_an_adapter_without_effect_and_adapters_that_cancel_are_refused,
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_seen(case, folders, tmp_path, monkeypatch):
    mistake = MISTAKES[case]
    wanted = inspect.signature(mistake.check).parameters
    place = tmp_path / "check"
    place.mkdir()
    given = {"folders": folders, "tmp_path": place, **dict(mistake.given)}
    given = {name: value for name, value in given.items() if name in wanted}
    monkeypatch.setattr(mistake.owner, mistake.name, mistake.wrong)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        mistake.check(**given)
