"""AdaLoRA shares its budget as promised, finds where the rank is needed, and tells when it was not driven."""

import warnings

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import lorica
from lorica.adapter import UnfinishedWarning
from lorica.errors import AdapterError, CheckpointError, RecipeError, RunError, TargetError
from lorica.methods import AdaLoRA
from lorica.methods.rank_budget import Allocation

MATRICES, WIDTH, TRUE_RANK = 12, 12, 4
NEEDED = (2, 7, 10)


class Branches(nn.Module):
    """y = the sum of M_i W_i x_i: each matrix has an input of its own, and every error reaches all of them.

    In a residual stack an update of one layer can as well be made in the next, so that there is nothing to find.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(MATRICES))
        self.mixers = WIDTH**-0.5 * torch.randn(MATRICES, WIDTH, WIDTH, generator=generator)
        for parameter in self.parameters():
            parameter.data = WIDTH**-0.5 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, matrices, d) -> (B, d)"""
        return sum(layer(x[:, i]) @ self.mixers[i].T for i, layer in enumerate(self.layers))


def inputs(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, MATRICES, WIDTH, generator=generator)


def teacher(seed: int) -> Branches:
    """The base with an update of rank 4 in three of its twelve matrices."""
    model, generator = Branches(), torch.Generator().manual_seed(seed)
    for layer in NEEDED:
        left, right = (torch.randn(WIDTH, TRUE_RANK, generator=generator) for _ in range(2))
        model.layers[layer].weight.data += 0.1 * left @ right.T
    return model.requires_grad_(False)


def attached(**options) -> lorica.Attached:
    return lorica.attach(Branches(), AdaLoRA(**{"r": 1, "init_r": 4, "alpha": 8, **options}), seed=1)


def life_of(handle: lorica.Attached) -> Allocation:
    (life,) = handle.life.lives.values()
    return life


def learn(handle: lorica.Attached, steps: int, seed: int = 3, observe=lambda step: None, total: int | None = None):
    """One's own loop, as the documentation has it."""
    goal, generator = teacher(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(handle.parameters(), lr=0.03)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    loss = torch.zeros(())
    for step in range(1, steps + 1):
        x = inputs(32, generator)
        loss = (handle(x) - goal(x)).square().mean()
        extra = handle.life and handle.life.extra_loss()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        if handle.life is not None:
            handle.life.after_step(step, total or steps)
        optimizer.zero_grad()
        rate.step()
        observe(step)
    return float(loss.detach())


def kept(handle: lorica.Attached) -> list[int]:
    return [module.kept for module in handle.modules.values()]


def area(ranks: list[int]) -> float:
    """Of the curve: how often a matrix that needs rank has more of it than one that does not."""
    pairs = [(a, b) for i, a in enumerate(ranks) if i in NEEDED for j, b in enumerate(ranks) if j not in NEEDED]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_the_rank_goes_where_it_is_needed_and_by_chance_it_would_not(monkeypatch):
    """Twelve values are left, and three matrices need four each; the same number everywhere does not fit them."""
    uniform = lorica.attach(Branches(), lorica.LoRA(r=1, alpha=2), seed=1)
    chosen, drawn = attached(), attached()
    losses = [learn(chosen, 80), learn(uniform, 80)]
    monkeypatch.setattr(Allocation, "scores", lambda life: torch.rand(48, generator=torch.Generator().manual_seed(3)))
    losses.append(learn(drawn, 80))
    assert sum(kept(chosen)) == sum(kept(drawn)) == MATRICES
    assert area(kept(chosen)) > 0.9
    assert area(kept(drawn)) < 0.8
    assert losses[0] < 0.3 * min(losses[1:])


def test_what_is_kept_follows_the_budget():
    handle, total, was = attached(), 60, []
    learn(handle, total, observe=lambda step: was.append(sum(kept(handle))))
    schedule = life_of(handle).schedule(total)
    assert was == [schedule.budget(step) for step in range(1, total + 1)]
    assert was == sorted(was, reverse=True)
    assert was[:6] == [48] * 6
    assert was[35:] == [12] * 25  # from T - tfinal on, at each step
    assert all(module.P.any(0).all() and module.Q.any(1).all() for module in handle.modules.values())


def test_what_was_masked_comes_back_when_it_proves_worth_it():
    """Half of the values are left; gradients are large at the first sites, then at the last ones."""
    handle, was = attached(r=1, init_r=2, tinit=0, tfinal=0), []
    modules = list(handle.modules.values())
    for step in range(1, 61):
        for place, module in enumerate(modules):
            wanted = (place < 6) == (step <= 20)
            for parameter in module.parameters():
                parameter.grad = torch.full_like(parameter, (2.0 if wanted else 0.01) * (1 + step % 2))
            module.L.data.add_(0.1)
        handle.life.extra_loss()
        handle.life.after_step(step, 60)
        was.append(kept(handle))
    assert sum(was[19][:6]) > sum(was[19][6:])
    assert was[-1] == [0] * 6 + [2] * 6


def test_between_two_choices_nothing_is_masked():
    handle, was = attached(deltaT=7, tinit=0, tfinal=6), []
    learn(handle, 40, observe=lambda step: was.append(sum(kept(handle))))
    chosen = [step for step, left in enumerate(was, 1) if left < 48]
    assert chosen == [7, 14, 21, 28, *range(34, 41)]


def test_after_the_last_choice_the_same_ones_are_kept():
    handle, sets = attached(), []
    learn(handle, 50, observe=lambda step: sets.append([(m.L != 0).tolist() for m in handle.modules.values()]))
    assert all(each == sets[29] for each in sets[30:])
    assert sets[28] != sets[9]


def test_the_vectors_become_orthonormal():
    handle = attached(r=3, init_r=4, orth_reg_weight=3)
    before = torch.stack(list(life_of(handle).residuals()))
    learn(handle, 100)
    after = torch.stack(list(life_of(handle).residuals()))
    assert float(before.detach().min()) > 1.5
    assert float(after.detach().mean()) < 1e-2


def test_without_its_term_the_vectors_stay_as_they_are():
    handle = attached(r=3, init_r=4, orth_reg_weight=0)
    assert handle.life.extra_loss() is None
    assert float(torch.stack(list(life_of(handle).residuals())).detach().min()) > 1.5


def test_a_budget_that_is_the_start_masks_nothing():
    """k = 0, where PEFT fails."""
    handle = attached(r=4, init_r=4)
    learn(handle, 8)
    assert kept(handle) == [4] * MATRICES
    assert handle.unfinished() is None


def test_of_equal_scores_the_first_are_kept_and_no_more_than_the_budget():
    handle = attached()
    for module in handle.modules.values():
        module.L.data.fill_(1.0)
        module.L.grad = torch.zeros_like(module.L)
    handle.life.extra_loss()
    handle.life.after_step(1, 1)
    assert kept(handle) == [4, 4, 4] + [0] * 9


def test_a_site_may_end_without_rank_and_goes_on_computing():
    handle = attached()
    for module in list(handle.modules.values())[1:]:
        module.L.data.fill_(0.0)
    x = torch.ones(2, MATRICES, WIDTH)
    handle(x).sum().backward()
    assert kept(handle)[1:] == [0] * (MATRICES - 1)
    assert all(module.L.grad.any() for module in list(handle.modules.values())[1:]), "it may come back"


@pytest.mark.parametrize(("options", "total"), [({"tinit": 30, "tfinal": 30}, 60), ({"tinit": 0.5, "tfinal": 40}, 70)])
def test_a_run_too_short_for_its_phases_is_refused_with_the_remedy(options, total):
    handle = attached(**options)
    with pytest.raises(RecipeError, match=rf"leave none of the run's {total} steps .*tinit=0\.1"):
        handle.life.begin(total)
    handle.life.extra_loss()
    with pytest.raises(RecipeError, match="train longer"):
        handle.life.after_step(1, total)
    handle.life.begin(total + 20)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 10])
def test_the_shares_fit_any_run(total):
    handle = attached()
    learn(handle, total)
    assert sum(kept(handle)) == MATRICES


def test_calls_that_are_forgotten_or_come_too_late_are_told():
    handle = attached()
    with pytest.raises(RunError, match=r"extra loss was not asked for; add attached\.life\.extra_loss\(\)"):
        handle.life.after_step(1, 9)
    handle.life.extra_loss()
    with pytest.raises(RunError, match=r"after optimizer\.step\(\) and before zero_grad\(\)"):
        handle.life.after_step(1, 9)


def test_an_adapter_that_was_never_driven_is_marked_and_refused(tmp_path):
    """A loop without after_step: plain training with a factor more."""
    handle = attached()
    for module in handle.modules.values():
        module.L.data.fill_(0.5)
    with pytest.warns(UnfinishedWarning, match="48 singular values are left where the budget is 12"):
        handle.save(tmp_path / "a")
    assert "Not finished" in (tmp_path / "a" / "README.md").read_text()
    assert "48 singular values" in (tmp_path / "a" / "lorica.json").read_text()
    with pytest.raises(AdapterError, match=r"not finished: adalora: 48 .*untrained=True"):
        lorica.load(Branches(), tmp_path / "a")
    bank = lorica.Bank(Branches())
    with pytest.raises(AdapterError, match="not finished"):
        bank.add("a", tmp_path / "a")
    with pytest.raises(AdapterError, match="merge: not finished"):
        handle.merge()
    again = lorica.load(Branches(), tmp_path / "a", untrained=True)
    assert again.unfinished() == handle.unfinished()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.save(tmp_path / "b", midway=True)
    handle.merge(untrained=True)


def test_one_that_was_left_before_its_end_is_refused_as_well(tmp_path):
    handle = attached()
    learn(handle, 20, total=60)
    assert "singular values are left where the budget is 12" in str(handle.unfinished())


def test_a_finished_one_is_saved_and_loaded_to_the_bit(tmp_path):
    handle = attached()
    learn(handle, 30)
    handle.save(tmp_path / "a")
    again = lorica.load(Branches(), tmp_path / "a")
    assert all(torch.equal(value, again.state()[key]) for key, value in handle.state().items())
    x = inputs(4, torch.Generator().manual_seed(1))
    assert torch.equal(handle(x), again(x))
    bank = lorica.Bank(Branches())
    bank.add("a", tmp_path / "a")
    with bank.use(["a", None, "a", None]):
        routed = bank.model(x)
    torch.testing.assert_close(routed[::2], handle(x)[::2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(routed[1::2], Branches()(x)[1::2], rtol=1e-5, atol=1e-5)
    assert "Not finished" not in (tmp_path / "a" / "README.md").read_text()


def test_scores_of_other_sites_are_refused():
    life = life_of(attached())
    state = dict(life.state_dict())
    state.pop("sensitivity.layers.3.P")
    with pytest.raises(CheckpointError, match=r"other sites: sensitivity\.layers\.3\.P"):
        life.load_state_dict(state)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"r": 8, "init_r": 6}, "init_r: 6 is below r"),
        ({"tinit": 1.5}, "neither a share below 1 nor a number of steps"),
        ({"tinit": 0.5, "tfinal": 0.5}, "together they are the whole run"),
        ({"target_r": 4}, "target_r is PEFT's name: write r"),
        ({"total_step": 4}, "a run knows its steps"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(fields, told):
    with pytest.raises(ValidationError, match=told):
        AdaLoRA(**fields)


def test_ranks_that_do_not_fit_the_base_are_refused_together():
    with pytest.raises(TargetError, match=r"'layers\.12' matches no adapted site(.|\n)*5 at layers\.1 is above init_r"):
        attached(rank_pattern={"layers.12": 1, "layers.1": 5})
    with pytest.raises(TargetError, match=r"init_r: 13 is beyond layers\.0"):
        attached(init_r=13)


def test_the_plan_says_what_is_left():
    told = str(lorica.plan(Branches(), AdaLoRA(r=2)))
    assert "r=3, mean 2 left, s=5.333" in told
    assert "24 singular values are left in all" in told
