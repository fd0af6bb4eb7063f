"""Dropout as a function: the published Philox, drawn by place alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorica.kernels import Noise, site_id
from lorica.kernels.noise import philox

# Random123-1.14.0, tests/kat_vectors, "philox4x32 10": counter, key, result
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def drawn(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    return [int(word) for word in philox((c0, c1, c2, c3), (key[0], key[1]))]


@pytest.mark.parametrize(("counter", "key", "result"), PUBLISHED)
def test_philox_gives_the_published_vectors(counter: str, key: str, result: str):
    assert drawn(words(counter), words(key)) == words(result)


uint32 = st.integers(0, 2**32 - 1)


@given(st.tuples(uint32, uint32, uint32, uint32), st.tuples(uint32, uint32))
def test_philox_in_wrapping_64_bits_is_philox_in_whole_numbers(counter: tuple[int, ...], key: tuple[int, int]):
    m0, m1, w0, w1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        (hi0, lo0), (hi1, lo1) = divmod(m0 * c0, 2**32), divmod(m1 * c2, 2**32)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + w0) % 2**32, (k1 + w1) % 2**32
    assert drawn(list(counter), list(key)) == [c0, c1, c2, c3]


def noise(rows: list[int], positions: list[int] | None, seed: int = 1, step: int = 2) -> Noise:
    return Noise(seed, step, torch.tensor(rows), None if positions is None else torch.tensor(positions))


def test_a_mask_scales_what_it_keeps_and_drops_its_share():
    like = torch.empty(2000, 50)
    mask = noise(list(range(2000)), [0] * 2000).keep(0.3, 5, like)
    assert mask.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    share = (mask == 0).double().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / mask.numel()) ** 0.5


@pytest.mark.parametrize("width", [1, 3, 4, 7, 64])
def test_a_wider_input_keeps_the_mask_of_its_first_channels(width: int):
    narrow = noise([4, 9], [0, 7]).keep(0.5, 5, torch.empty(2, width))
    wide = noise([4, 9], [0, 7]).keep(0.5, 5, torch.empty(2, 80))
    assert torch.equal(narrow, wide[:, :width])


def test_every_coordinate_of_a_place_changes_the_mask():
    like = torch.empty(1, 64)
    place = {"rows": [3], "positions": [4], "seed": 1, "step": 2}
    here = noise(**place).keep(0.5, 5, like)  # type: ignore[arg-type]
    assert torch.equal(here, noise(**place).keep(0.5, 5, like))  # type: ignore[arg-type]
    for name, other in {"rows": [4], "positions": [3], "seed": 2, "step": 1}.items():
        assert not torch.equal(here, noise(**{**place, name: other}).keep(0.5, 5, like))  # type: ignore[arg-type]
    assert not torch.equal(here, noise(**place).keep(0.5, 6, like))  # type: ignore[arg-type]


def test_a_batch_of_rows_draws_as_its_flat_tokens_do():
    rectangle = noise([3, 8], None).keep(0.5, 5, torch.empty(2, 6, 10))
    flat = noise([3] * 6 + [8] * 6, [*range(6), *range(6)]).keep(0.5, 5, torch.empty(12, 10))
    assert torch.equal(rectangle.flatten(0, 1), flat)


def test_rows_far_beyond_32_bits_and_half_precision_are_drawn_alike():
    like = torch.empty(1, 16)
    wide = noise([2**32 + 3], [0]).keep(0.5, 5, like)
    assert torch.equal(wide, noise([3], [0]).keep(0.5, 5, like))
    half = noise([3], [0]).keep(0.5, 5, like.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), wide)


def test_sites_have_names_of_their_own():
    names = [f"model.layers.{layer}.{part}" for layer in range(80) for part in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert len({site_id(name) for name in names}) == len(names)
