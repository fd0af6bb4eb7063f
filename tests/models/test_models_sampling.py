"""Sorting the few tokens that a cut can keep draws what sorting the whole vocabulary draws."""

import pytest
import torch

from lorica.models.sampling import Sampling, generators_of

CUTS = ({"top_k": 40}, {"top_k": 1}, {"top_k": 10**6}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_p": 0.5, "top_k": 7})


def by_sorting_all(sampling, logits, draws):
    """The definition, one row at a time."""
    ordered, ids = (logits.float() / sampling.temperature).softmax(-1).sort(stable=True, descending=True)
    kept = sampling.kept(ordered).double().cumsum(-1)
    places = torch.searchsorted(kept, draws * kept[:, -1:], right=True).clamp_max(logits.shape[-1] - 1)
    return ids.gather(-1, places).squeeze(-1).tolist()


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_draw_of_few_is_the_draw_of_all(cut, dtype):
    """In bfloat16 many logits tie: the first of them counts as the likelier in both."""
    for vocabulary in (5, 301, 5003):
        for temperature in (0.5, 2.0):
            sampling = Sampling(temperature=temperature, **cut)
            logits = (4 * torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(vocabulary))).to(dtype)
            for seed in range(10):
                each = [torch.rand(1, generator=g, dtype=torch.float64) for g in generators_of(seed, 4)]
                found = sampling.choose(logits, generators_of(seed, 4))
                assert found == by_sorting_all(sampling, logits, torch.stack(each))


@pytest.mark.parametrize("cut", [{}, *CUTS], ids=str)
def test_logits_that_are_no_numbers_are_drawn_from_without_an_error(cut):
    """Whoever asked is told by other means, and rows beside are answered."""
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    poisoned = torch.stack([torch.full((50,), float("nan")), logits[1]])
    sampling = Sampling(temperature=1.0, **cut)
    assert sampling.choose(poisoned, generators_of(3, 2))[1] == sampling.choose(logits, generators_of(3, 2))[1]
