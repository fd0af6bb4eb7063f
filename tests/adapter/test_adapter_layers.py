"""Adapters on convolutions, torch's attention and experts are planned, banked, merged, measured and verified."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.adapter import Attached, Bank, attach, load, merge_checkpoint, plan
from lorica.budget.memory import Workload, memory_of
from lorica.errors import AdapterError, TargetError
from lorica.methods import LoRA
from lorica.methods.lora_experts import LoRAExperts
from lorica.models import load_base, sites
from tiny_bases import BASES, LLAMA, VIT, Base, stir
from tiny_layers import ATTENTION, CONVNET, GPT_OSS, MOE, UNET

EVERYTHING = LoRA(r=2, alpha=5, target_modules="*")
EACH = [CONVNET, ATTENTION, MOE, GPT_OSS, UNET]
every = pytest.mark.parametrize("base", EACH, ids=str)


def stirred(base: Base, method: LoRA = EVERYTHING, seed: int = 5) -> Attached:
    attached = attach(base.build(), method, seed=seed)
    stir(attached.named_parameters())
    return attached


def distance(y: Tensor, reference: Tensor) -> float:
    return float((y - reference).abs().max() / reference.abs().max())


@every
def test_norms_of_updates_are_those_of_the_weights(base: Base):
    attached = stirred(base)
    before = dict(base.build().named_parameters())
    told = attached.update_norms()
    after = dict(attached.merge().named_parameters())
    weights = {p.site.name: p.site.weight for p in attached.plan.edits}
    norms = {name: float((after[weight] - before[weight]).norm()) for name, weight in weights.items()}
    assert told == pytest.approx(norms, rel=1e-10)


@every
def test_an_adapter_whose_updates_are_zero_is_told_apart(base: Base, tmp_path: Path):
    attach(base.build(torch.float32), EVERYTHING).save(tmp_path)
    with pytest.raises(AdapterError, match="changes nothing"):
        load(base.build(torch.float32), tmp_path)


@pytest.mark.parametrize("base", [CONVNET, UNET], ids=str)
def test_rows_of_a_batch_choose_their_convolutions(base: Base):
    one, two = stirred(base), stirred(base, LoRA(r=1, alpha=7, target_modules="*"), seed=6)
    bank = Bank(base.build())
    bank.add("one", one)
    bank.add("two", two)
    with torch.no_grad():
        expected = torch.stack([base.output(one.model)[0], base.output(bank.model)[1], base.output(two.model)[2]])
        with bank.use(["one", None, "two"]) as model:
            assert distance(base.output(model), expected) < 1e-12


@pytest.mark.parametrize("base", [ATTENTION, MOE], ids=str)
def test_a_weight_that_is_read_itself_is_one_for_the_whole_batch(base: Base):
    one, two = stirred(base), stirred(base, LoRA(r=1, alpha=7, target_modules="*"), seed=6)
    bank = Bank(base.build())
    bank.add("one", one)
    bank.add("two", two)
    with torch.no_grad():
        bare = base.output(base.build())
        for name, alone in {"one": one, "two": two}.items():
            with bank.use(name) as model:
                assert distance(base.output(model), base.output(alone.model)) < 1e-12
        assert torch.equal(base.output(bank.model), bare)
        with bank.use(["one", None, "two"]) as model, pytest.raises(AdapterError, match="rows of one batch share"):
            base.output(model)
    assert torch.equal(base.output(bank.detach()), bare)


def test_the_weights_of_experts_are_computed_once_a_call(monkeypatch: pytest.MonkeyPatch):
    """Their module reads them again for every expert."""
    calls: list[int] = []
    merged = LoRAExperts.merged
    monkeypatch.setattr(LoRAExperts, "merged", lambda self, W: calls.append(1) or merged(self, W))
    attached = stirred(MOE)
    experts = [site for site in attached.plan.sites if site.kind == "experts"]
    MOE.loss(attached.model).backward()
    assert len(calls) == len(experts) == 4


def test_an_error_within_a_call_leaves_no_weight_behind(monkeypatch: pytest.MonkeyPatch):
    from lorica.models.edits.computed import _held

    attached = stirred(MOE)
    monkeypatch.setattr(torch.Tensor, "index_add_", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        MOE.output(attached.model)
    assert not _held.get()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torchs_fused_encoder_reads_merged_projections():
    """In evaluation it packs its input into a nested tensor that only its fused path can read."""

    def encoder() -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2).double().eval()

    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    attached = attach(encoder(), LoRA(r=2, alpha=5, target_modules=("self_attn",)))
    stir(attached.named_parameters())
    assert {site.leaf for site in attached.plan.sites} == {"in_proj_weight", "out_proj"}
    with torch.no_grad():
        adapted = attached(x, src_key_padding_mask=mask)
    merged = attached.merge().train()(x, src_key_padding_mask=mask).detach()
    plain = encoder().train()(x, src_key_padding_mask=mask).detach()
    assert distance(adapted[~mask], merged[~mask]) < 1e-12
    assert distance(adapted[~mask], plain[~mask]) > 0.05


class Standardised(nn.Conv2d):
    """As the stem of BiT reads its weight: not as it is."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def test_a_convolution_that_reads_its_weight_otherwise_is_no_site():
    weighted = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
    model = nn.Sequential(Standardised(4, 4, 3), weighted, nn.ConvTranspose1d(4, 4, 3), nn.Conv2d(4, 4, 3))
    assert [site.name for site in sites(model) if site.kind == "conv"] == ["3"]


def test_presets_mean_linears_and_the_plan_says_what_they_leave():
    told = str(plan(MOE.build(), LoRA(r=2)))
    assert "all-linear: 4 weights of experts stay as they are (down_proj, gate_up_proj)" in told
    assert "3 convolutions stay as they are" not in told
    assert "1 convolutions stay as they are (projection)" in str(plan(VIT.build(), LoRA(r=2, target_modules="minimal")))
    assert all("stay as they are" not in str(plan(base.build(), LoRA(r=2))) for base in (*BASES[:4], ATTENTION))
    named = plan(MOE.build(), LoRA(r=2, target_modules=("experts", "q_proj")))
    assert named.matched == {"experts": 4, "q_proj": 2}
    assert "mlp.experts.gate_up_proj" not in str(named)
    assert "experts.gate_up_proj      2  4 x 24 x 16" in str(named)


def test_presets_find_the_projections_of_torchs_attention_and_of_diffusers():
    """`in_proj_weight` is queries, keys and values in one; keys of another width have matrices of their own."""
    chosen = {site.leaf for site in plan(ATTENTION.build(), LoRA(r=2, target_modules="qkv")).sites}
    assert chosen == {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
    unet = plan(UNET.build(), LoRA(r=2, target_modules="attention"))
    assert {site.name.partition("transformer_blocks.0.")[2] for site in unet.sites} == {
        f"attn{number}.{leaf}" for number in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")
    }


def test_a_glob_or_a_name_chooses_the_parts_of_a_unet():
    def chosen(target: Any) -> set[str]:
        return {site.name for site in plan(UNET.build(), LoRA(r=2, target_modules=target)).sites}

    assert chosen("down_blocks.*.resnets.*") == {
        f"down_blocks.0.resnets.0.{leaf}" for leaf in ("conv1", "conv2", "time_emb_proj", "conv_shortcut")
    }
    assert len(chosen("*.to_*")) == 3 * 2 * 4
    assert chosen(("conv_in",)) == {"conv_in"}
    with pytest.raises(TargetError, match="did you mean 'conv_in'"):
        chosen(("conv_im",))


def test_dropout_has_no_place_before_a_weight_that_is_read_itself():
    for base, target in ((MOE, "experts"), (ATTENTION, "attn")):
        with pytest.raises(TargetError, match=r"dropout: .* reads its weights itself.*set dropout: 0, or leave"):
            plan(base.build(), LoRA(r=2, dropout=0.1, target_modules=(target,)))


def test_a_rank_beyond_what_is_under_the_kernel_is_refused():
    with pytest.raises(TargetError, match=r"r: 4 is beyond features.depthwise \(6, 1, 3\), use 1 to 3"):
        plan(CONVNET.build(), LoRA(r=4, target_modules=("depthwise",)))


def test_a_copy_of_an_adapted_expert_is_refused():
    from lorica.methods import Full

    with pytest.raises(TargetError, match=r"gate_up_proj.* trained whole and adapted beside it"):
        plan(MOE.build(), [LoRA(r=2, target_modules=("experts.gate_up_proj",)), Full()])


def test_sites_are_the_same_under_an_adapter():
    for base in EACH:
        model = base.build()
        before = sites(model)
        attach(model, EVERYTHING)
        assert sites(model) == before


def test_the_forecast_counts_the_merged_weights_of_experts():
    """Kept for the backward pass, unless their block is computed again; one has its gradient."""
    adapted = plan(MOE.build(torch.float32), LoRA(r=2, target_modules=("experts", "q_proj")))
    bare = plan(MOE.build(torch.float32), LoRA(r=2, target_modules=("q_proj",)))
    layer, largest = 4 * 4 * (24 * 16 + 16 * 12), 4 * 4 * 24 * 16

    def buffers(of: Any, recomputed: int | None) -> int:
        return memory_of(of, Workload(tokens=64, length=8, recomputed=recomputed), "cpu", decoder=False).buffers

    assert buffers(adapted, 0) - buffers(bare, 0) == 2 * layer + largest
    assert buffers(adapted, None) - buffers(bare, None) == layer + largest


def saved(base: Base, folder: Path) -> Path:
    model: Any = base.make()
    stir(model.named_parameters())
    model.save_pretrained(folder)
    return folder


def merged(folder: Path, base: Base, targets: tuple[str, ...], tmp_path: Path) -> tuple[Tensor, nn.Module]:
    """What the adapter on the base answers, and the checkpoint of both."""
    attached = attach(load_base(folder), LoRA(r=2, alpha=5, target_modules=targets))
    stir(attached.named_parameters())
    attached.save(tmp_path / "adapter")
    with torch.no_grad():
        expected = base.output(attached.model)
    merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "merged")
    return expected, load_base(tmp_path / "merged")


def test_a_convolution_is_merged_into_its_checkpoint(tmp_path: Path):
    folder = saved(VIT, tmp_path / "base")
    expected, model = merged(folder, VIT, ("projection",), tmp_path)
    with torch.no_grad():
        assert distance(VIT.output(model), expected) < 1e-5


def test_experts_are_merged_where_the_checkpoint_holds_them_as_the_model_does(tmp_path: Path):
    folder = saved(GPT_OSS, tmp_path / "base")
    expected, model = merged(folder, GPT_OSS, ("experts", "q_proj"), tmp_path)
    with torch.no_grad():
        assert distance(GPT_OSS.output(model), expected) < 1e-5


def test_experts_that_a_checkpoint_holds_one_by_one_are_merged_in_memory(tmp_path: Path):
    folder = saved(MOE, tmp_path / "base")
    with pytest.raises(AdapterError, match=r"no tensor for .*experts.*merge in memory.*save_pretrained"):
        merged(folder, MOE, ("experts",), tmp_path)
    attached: Any = load(load_base(folder), tmp_path / "adapter")
    with torch.no_grad():
        expected = MOE.output(attached.model)
        attached.merge().save_pretrained(tmp_path / "merged")
        assert distance(MOE.output(load_base(tmp_path / "merged")), expected) < 1e-5


def test_an_adapter_on_experts_answers_as_it_did_when_it_was_saved(tmp_path: Path):
    import lorica

    folder = saved(MOE, tmp_path / "base")
    attached = attach(load_base(folder), LoRA(r=2, alpha=5, target_modules=("experts", "q_proj")))
    stir(attached.named_parameters())
    attached.save(tmp_path / "adapter")
    proof = lorica.verify(tmp_path / "adapter", model=folder)
    assert proof.ok, str(proof)
    assert "outputs" in str(proof)


def test_a_linear_site_of_our_decoder_is_as_it_was():
    assert all(not site.part_of and not site.bare and site.groups == 1 for site in sites(LLAMA.build()))
