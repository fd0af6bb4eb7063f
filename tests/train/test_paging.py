"""Optimiser state that does not fit its budget: it is forced to page, and no bit of a run shows it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from campaign.tiny_run import base, dataset, lora
from lorica.adapter import attach
from lorica.kernels.elsewhere import Store
from lorica.tasks.causal_lm import CausalLanguageModelling
from lorica.train import Run, TrainConfig, fit
from lorica.train.optimizers import OPTIMIZERS
from lorica.train.paging import Paged

CPU = torch.device("cpu")
SETTINGS = {"steps": 6, "rows_per_step": 6, "learning_rate": 1e-2, "checkpoint_every": 3, "keep_checkpoints": 9}


def learned(folder: Path | None = None, resume: bool = False, **settings: Any) -> tuple[dict[str, Tensor], Run]:
    attached = attach(base(layers=2), lora(), seed=1)
    config = TrainConfig(**{**SETTINGS, **settings})
    run = fit(attached, CausalLanguageModelling(), dataset(), None, config, folder=folder, resume=resume)
    return {key: tensor.clone() for key, tensor in attached.state().items()}, run


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def state_bytes(name: str) -> int:
    attached = attach(base(layers=2), lora(), seed=1)
    config = TrainConfig(optimizer=name, learning_rate=1e-2).optimizer
    return sum(t.nbytes for t in OPTIMIZERS[name][1](dict(attached.named_parameters()), config).state().values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_trajectory_is_that_of_the_unpaged_run_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = state_bytes(name) // 3
    held: list[int] = []
    real = Paged.__getitem__

    def watched(self: Paged, key: str) -> Any:
        parts = real(self, key)
        held.append(self.held)
        return parts

    monkeypatch.setattr(Paged, "__getitem__", watched)
    plain, unpaged = learned(optimizer=name)
    paged, run = learned(optimizer=name, page_state=budget)
    assert same(plain, paged)
    assert unpaged.pages is None
    assert run.pages is not None
    assert min(run.pages.values()) >= 6 * len(plain) // 3, "a third stays, the rest comes and goes in every step"
    assert 0 < max(held) <= budget
    assert run.history[-1]["pages"] == run.pages
    assert "pages of state in" in str(run)


def test_a_budget_below_the_largest_page_holds_that_page_alone() -> None:
    plain, _ = learned()
    paged, run = learned(page_state=1)
    assert same(plain, paged)
    assert run.pages is not None
    assert run.pages["in"] == 6 * len(plain)


@pytest.mark.parametrize(("before", "after"), [(None, 1500), (1500, None), (1500, 900)])
def test_checkpoints_are_those_of_an_unpaged_run_either_way(before: Any, after: Any, tmp_path: Path) -> None:
    plain, _ = learned(tmp_path / "plain")
    learned(tmp_path / "first", page_state=before)
    for step in (3, 6):
        files = [tmp_path / name / f"checkpoints/step-{step:08d}/optimizer.safetensors" for name in ("plain", "first")]
        assert files[0].read_bytes() == files[1].read_bytes()
    for newest in ("checkpoints/step-00000006", "adapter"):
        (tmp_path / "first" / newest).rename(tmp_path / newest.replace("/", "-"))
    resumed, _ = learned(tmp_path / "first", resume=True, page_state=after)
    assert same(plain, resumed)


def test_no_order_of_pages_needs_fewer_than_what_leaves_here(tmp_path: Path) -> None:
    """N pages of one size, visited in a cycle with room for C: Belady's order misses N - C + 1 of them in a cycle at
    most, where the least recently used one as the one to go would miss all N."""
    pages, room, size, cycles = 10, 4, 64, 9
    paged = Paged(room * size * 4, Store(CPU, tmp_path))
    for page in range(pages):
        paged.add(str(page), {"m": torch.full((size,), float(page))})
    start = paged.pages_in
    for _ in range(cycles):
        for group in paged.together([str(page) for page in range(pages)]):
            for name in group:
                paged[name]["m"].add_(1)
    assert paged.pages_in - start <= cycles * (pages - room + 1)
    expected = {f"{page}.m": torch.full((size,), float(page + cycles)) for page in range(pages)}
    assert same(dict(paged.tensors([str(page) for page in range(pages)])), expected)
