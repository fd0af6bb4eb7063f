"""Each law rejects a method, or a model, that is broken in the one way the law is about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from table import ROWS
from torch import Tensor, nn

import laws
from lorica.kernels import LowRank, Noise, site_id
from lorica.methods import IA3
from lorica.methods.contract import Around, AroundLinear, Copy, Edit, Flow, Instead, Method, Start
from lorica.models import ambient
from lorica.models.edits import around
from lorica.models.entry import Reentering
from lorica.site import Site
from ten_line_methods import Biases
from tiny_bases import BERT, LLAMA

COUNT: Any = next(row.count for row in ROWS if row.name == "lora")


class Adapter(AroundLinear):
    """LoRA, right in every respect; the broken ones below differ in one."""

    start_of_B: float = 0.0
    dropout: float = 0.2

    def __init__(self, site: Site, start: Start) -> None:
        super().__init__()
        self.A, self.B = start.normal(0.3, 3, site.d_in), start.zeros(site.d_out, 3)
        with torch.no_grad():
            self.B.add_(self.start_of_B)
        self.scale, self.site = 8 / 3, site_id(site.name)

    def low_rank(self) -> LowRank:
        return LowRank(A=self.A, B=self.B, scale=self.scale, dropout=self.dropout, site=self.site)

    def merged(self, W: Tensor) -> Tensor:
        return W + self.scale * self.B @ self.A


class Broken(Method):
    """Every linear but the head gets the adapter of this class."""

    kind: ClassVar[str] = "test-broken"
    adapter: type[nn.Module] = Adapter

    def edits(self, sites: tuple[Site, ...], statistics: Any = None) -> tuple[Edit, ...]:
        chosen = [site for site in sites if site.kind == "linear" and "head" not in site.roles]
        return tuple(Around(site, lambda start, site=site: self.adapter(site, start)) for site in chosen)


def method(adapter: type[nn.Module]) -> Method:
    return Broken(adapter=adapter)


class OtherScaleInMerged(Adapter):
    def merged(self, W: Tensor) -> Tensor:
        return W + self.B @ self.A


class StartsElsewhere(Adapter):
    start_of_B = 1e-9


class FrozenTensor(Adapter):
    """A parameter that the forward pass does not read."""

    def __init__(self, site: Site, start: Start) -> None:
        super().__init__(site, start)
        self.unused = start.zeros(2)


class WritesTheBase(Adapter):
    """Adds its update to the base's weight in place, once the update is there."""

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        with torch.no_grad():
            base.weight.add_(self.B @ self.A)  # type: ignore[operator]
        return super().forward(x, base, flow)


class MergesInPlace(Adapter):
    def merged(self, W: Tensor) -> Tensor:
        return W.add_((self.scale * self.B @ self.A).detach())


class ForgetsTheBias(Adapter):
    """Doubles the whole output, and says so of the weight alone."""

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        return 2 * super().forward(x, base, flow)

    def merged(self, W: Tensor) -> Tensor:
        return 2 * super().merged(W)


class ScalesTheBias(ForgetsTheBias):
    def merged_bias(self, bias: Tensor) -> Tensor:
        return 2 * bias


class WrongGradient(Adapter):
    """The gradient of the update is halved."""

    def low_rank(self) -> LowRank:
        half = 0.5 * self.B + 0.5 * self.B.detach()
        return LowRank(A=self.A, B=half, scale=self.scale, dropout=self.dropout, site=self.site)


class CountsItsCalls(Adapter):
    """Dropout by how often it was called, as with a generator."""

    calls = 0

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        self.calls += 1
        rows = torch.zeros(x.shape[0], dtype=torch.int64)
        counted: Any = type("Counted", (), {"noise": Noise(1, self.calls, rows, rows) if self.training else None})()
        return super().forward(x, base, counted)


class DrawsByPlaceInTheBatch(Adapter):
    """Dropout by the place in the batch instead of the row of the data set."""

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        rows = torch.arange(x.shape[0])
        placed: Any = type("Placed", (), {"noise": Noise(1, 2, rows, rows) if self.training else None})()
        return super().forward(x, base, placed)


class OneMore(Broken):
    """Also trains the head's weight."""

    kind: ClassVar[str] = "test-one-more"

    def edits(self, sites: tuple[Site, ...], statistics: Any = None) -> tuple[Edit, ...]:
        head = next(site for site in sites if site.name == "lm_head.weight")
        return (*super().edits(sites), Instead(head, Copy))


LAWS: list[tuple[Callable[..., None], type[nn.Module], str]] = [
    (laws.the_start_is_the_base, StartsElsewhere, "the start differs"),
    (laws.forward_is_the_merged_weight, OtherScaleInMerged, r"forward and merged\(W\) differ"),
    (laws.everything_declared_moves_and_nothing_else, FrozenTensor, "these do not move"),
    (laws.everything_declared_moves_and_nothing_else, WritesTheBase, "the base was written"),
    (laws.detaching_gives_back_the_base, WritesTheBase, "differ after detach"),
    (laws.merging_leaves_a_plain_model_of_the_same_outputs, OtherScaleInMerged, "the outputs move by"),
    (laws.merging_leaves_a_plain_model_of_the_same_outputs, MergesInPlace, "merging wrote"),
    (laws.gradients_are_slopes, WrongGradient, "gradient .* slope"),
    (laws.recomputation_changes_nothing, CountsItsCalls, "computed again"),
    (laws.micro_batches_draw_the_masks_of_the_whole, CountsItsCalls, "batch is split"),
    (laws.micro_batches_draw_the_masks_of_the_whole, DrawsByPlaceInTheBatch, "batch is split"),
]


NAMES = [f"{law.__name__}-{adapter.__name__}" for law, adapter, _ in LAWS]


@pytest.mark.parametrize(("law", "adapter", "verdict"), LAWS, ids=NAMES)
def test_a_broken_method_breaks_the_law(law: Callable[..., None], adapter: type[nn.Module], verdict: str):
    law(LLAMA, method(Adapter))
    with pytest.raises(AssertionError, match=verdict):
        law(LLAMA, method(adapter))


@pytest.mark.parametrize(
    "law", [laws.forward_is_the_merged_weight, laws.merging_leaves_a_plain_model_of_the_same_outputs]
)
def test_a_scaled_output_whose_bias_is_not_merged_breaks_the_laws_of_merging(law: Callable[..., None]):
    law(LLAMA, method(ScalesTheBias))
    with pytest.raises(AssertionError, match=r"differ by|outputs move by"):
        law(LLAMA, method(ForgetsTheBias))


@pytest.mark.parametrize("methods", [[IA3(), Biases()], [Biases(), IA3()]], ids=["after", "before"])
def test_a_trained_bias_is_scaled_with_its_output_whichever_method_is_named_first(methods: list[Method]):
    laws.merging_leaves_a_plain_model_of_the_same_outputs(BERT, methods)


def test_an_undo_that_forgets_breaks_the_law_of_detaching(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(around, "together", lambda undos: lambda: None)
    with pytest.raises(AssertionError, match="differ after detach"):
        laws.detaching_gives_back_the_base(LLAMA, method(Adapter))


def test_a_miscounted_method_breaks_the_law_of_counting():
    laws.parameters_are_counted(LLAMA, method(Adapter), COUNT)
    with pytest.raises(AssertionError, match="closed form count"):
        laws.parameters_are_counted(LLAMA, OneMore(), COUNT)


def test_a_method_without_effect_does_not_pass_for_a_right_one():
    class Inert(Adapter):
        def __init__(self, site: Site, start: Start) -> None:
            super().__init__(site, start)
            self.scale = 0.0

    with pytest.raises(AssertionError, match="no visible effect"):
        laws.forward_is_the_merged_weight(LLAMA, method(Inert))


def test_recomputation_under_a_later_pass_breaks_its_law(monkeypatch: pytest.MonkeyPatch):
    """transformers' families, where the pass is in a context variable."""

    def forgetful(self: Reentering, function: Callable[..., Any], *args: Any) -> Any:
        passes = iter([ambient.current.get(), ambient.Pass(noise=Noise(4, 10, laws.ROWS))])

        def again(*inputs: Any) -> Any:
            with ambient.entered(next(passes)):
                return function(*inputs)

        return self.inner(again, *args)

    monkeypatch.setattr(Reentering, "__call__", forgetful)
    with pytest.raises(AssertionError, match="computed again"):
        laws.recomputation_changes_nothing(BERT, method(Adapter))


def test_a_state_that_is_rounded_on_the_way_breaks_the_law_of_saving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    lora = next(row.method for row in ROWS if row.name == "lora")
    from lorica.adapter import file

    monkeypatch.setattr(file, "_as_trained", lambda tensor: tensor.detach().bfloat16().float())
    with pytest.raises(AssertionError, match="state differs after saving"):
        laws.saving_and_loading_keeps_every_bit(LLAMA, lora, tmp_path)
