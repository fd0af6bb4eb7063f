"""The proof: taken without a trace, equal to the bit under the same numerics, and broken by what peers let pass."""

import json

import pytest
import torch

from adapter_folders import MANIFEST, failing, forged, saved, verified
from lorica import adapter
from lorica.adapter import proof as proofs
from lorica.adapter.proof import Comparison, Proof, Unprobed
from lorica.errors import AdapterError, LoricaError
from lorica.methods import Full, LoRA
from lorica.models.probe import Probe
from tiny_bases import BASES, BERT, GPT2, LLAMA, stir


@pytest.mark.parametrize("base", BASES, ids=repr)
@pytest.mark.parametrize("method", [LoRA(r=3, alpha=7), Full()], ids=["lora", "full"])
def test_an_adapter_reproduces_its_outputs_to_the_bit_on_a_base_loaded_anew(base, method, tmp_path):
    saved(tmp_path / "a", base, method)
    found = verified(tmp_path / "a", base)
    assert found.ok
    assert failing(found) == []
    assert "equal to the bit, under the same numerics" in str(found)


def test_under_another_type_the_check_is_on_the_adapters_own_effect_and_says_so(tmp_path):
    saved(tmp_path / "a")
    found = verified(tmp_path / "a", dtype=torch.bfloat16)
    assert found.ok
    (proof,) = [check for check in found.checks if check.name == "proof"]
    assert "of the effect" in proof.detail
    assert "dtype bfloat16 (was float32)" in proof.detail


def another_scale(tensors, config):
    """alpha / sqrt(r) where alpha / r was meant: vLLM 10798."""
    config["use_rslora"] = True


def one_site_left_out(tensors, config):
    tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"].zero_()


def factors_of_two_layers_swapped(tensors, config):
    one, two = (f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_B.weight" for n in (0, 1))
    tensors[one], tensors[two] = tensors[two], tensors[one]


@pytest.mark.parametrize("change", [another_scale, one_site_left_out, factors_of_two_layers_swapped])
@pytest.mark.parametrize("threads", [1, 2], ids=["same numerics", "other numerics"])
def test_what_hashes_and_shapes_cannot_see_breaks_the_proof(change, threads, tmp_path, monkeypatch):
    saved(tmp_path / "a")
    forged(tmp_path / "a", lambda tensors, config: None)
    assert verified(tmp_path / "a").ok, "the forgery itself is not what is seen"
    if threads == 2:
        other_numerics(tmp_path / "a")
        assert verified(tmp_path / "a").ok
    forged(tmp_path / "a", change)
    assert failing(verified(tmp_path / "a")) == ["proof"]


def other_numerics(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["proof"]["numerics"]["versions"]["torch"] = "2.12.0"
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_an_effect_that_rounding_hides_is_not_called_proven():
    found = Comparison(equal=False, deviation=0.01, allowed=0.06, effect=0.008, share=0.3, drift=("dtype bfloat16",))
    assert found.within_rounding
    assert not found.ok


def test_a_proof_is_taken_once_for_the_same_weights(tmp_path, monkeypatch):
    read, count = Probe.read, []
    monkeypatch.setattr(Probe, "read", lambda self, model: (count.append(1), read(self, model))[1])
    attached = saved(tmp_path / "a")
    assert len(count) == 2, "adapted and bare"
    attached.save(tmp_path / "b")
    assert len(count) == 2
    stir(attached.named_parameters())
    attached.save(tmp_path / "c")
    assert len(count) == 3, "the base answers once"
    again = adapter.load(LLAMA.build(torch.float32), tmp_path / "a")
    again.save(tmp_path / "d")
    assert len(count) == 3, "the proof came with the file"
    first, last = (json.loads((tmp_path / name / MANIFEST).read_text())["proof"] for name in "ad")
    assert first == last


def test_taking_a_proof_leaves_no_trace(tmp_path):
    model = GPT2.build(torch.float32)
    attached = adapter.attach(model, LoRA(r=3, dropout=0.3)).train(base=False)
    stir(attached.named_parameters())
    undo = attached.checkpoint()
    parameters, modes = list(model.parameters()), [module.training for module in model.modules()]
    before, generators = [p.detach().clone() for p in parameters], torch.get_rng_state()
    step = attached.clock.step
    attached.save(tmp_path / "a")
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(p, value) for p, value in zip(parameters, before, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generators)
    assert attached.clock.step == step
    assert all(p.requires_grad for p in attached.parameters())
    undo()
    attached.detach()


def test_weights_trained_in_double_are_proven_as_the_file_holds_them(tmp_path):
    attached = saved(tmp_path / "a", dtype=torch.float64)
    kept = attached.state()
    assert any(not torch.equal(value, value.float().double()) for value in kept.values()), (
        "nothing was rounded in place"
    )
    assert verified(tmp_path / "a", dtype=torch.float64).ok


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(x).tanh())


def test_a_module_of_ones_own_is_saved_without_a_probe_and_says_so(tmp_path):
    attached = adapter.attach(Own(), LoRA(r=2))
    stir(attached.named_parameters())
    attached.save(tmp_path / "a")
    told = json.loads((tmp_path / "a" / MANIFEST).read_text())["proof"]
    assert told == {"unprobed": "what Own takes as input is not known here"}
    found = adapter.verify(tmp_path / "a", lambda file: Own())
    assert found.ok
    assert "no outputs were recorded: what Own takes as input is not known here" in str(found)


def test_outputs_that_are_not_finite_are_no_proof(monkeypatch):
    model = LLAMA.build(torch.float32)
    model.lm_head.weight.data.fill_(3e38)
    attached = adapter.attach(model, LoRA(r=3))
    assert attached.proof() == Unprobed("the answers to the probe are not finite")


@pytest.mark.parametrize(
    "damage",
    [
        lambda proof: proof.pop("bare"),
        lambda proof: proof["adapted"]["logits"].pop(),
        lambda proof: proof["bare"].update(logits=[]),
        lambda proof: proof.update(numerics=3),
    ],
)
def test_a_damaged_proof_is_the_one_error(damage, tmp_path):
    saved(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    damage(manifest["proof"])
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(AdapterError, match="the proof is damaged"):
        adapter.load(LLAMA.build(torch.float32), tmp_path / "a")
    assert failing(verified(tmp_path / "a")) == ["format"]


def test_a_recorded_proof_reads_back_to_the_bit(tmp_path):
    proof = saved(tmp_path / "a", BERT).proof()
    again = proofs.recorded(json.loads((tmp_path / "a" / MANIFEST).read_text()))
    assert isinstance(proof, Proof)
    assert isinstance(again, Proof)
    assert again.to_dict() == proof.to_dict()


@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=repr)
def test_an_in_place_merge_reports_how_far_the_outputs_moved(base):
    attached = saved_in_memory(base)
    attached.merge()
    assert attached.merged is not None
    assert 0 < attached.merged.deviation < attached.merged.allowed < 1e-4
    assert attached.merged.effect > 0.1


def test_an_in_place_merge_without_a_probe_gives_the_same_weights():
    one, other = saved_in_memory(LLAMA), saved_in_memory(LLAMA)
    merged, unprobed = one.merge(), other.merge(probed=False)
    assert other.merged is None
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), unprobed.parameters(), strict=True))


def saved_in_memory(base, dtype=torch.float32, std=0.2):
    attached = adapter.attach(base.build(dtype), LoRA(r=3, alpha=7))
    stir(attached.named_parameters(), std)
    return attached


def test_a_merge_that_rounding_does_not_explain_is_refused_and_nothing_is_changed(monkeypatch):
    attached = saved_in_memory(LLAMA)
    model = attached.model
    before, names = LLAMA.output(model), [(name, id(p)) for name, p in model.named_parameters()]
    monkeypatch.setattr(
        "lorica.methods.lora.LoRALinear.merged", lambda self, W: W + 1.02 * self.scale * self.B @ self.A
    )
    with pytest.raises(AdapterError, match="rounding to float32 explains"):
        attached.merge()
    assert torch.equal(LLAMA.output(model), before)
    assert [(name, id(p)) for name, p in model.named_parameters()] == names
    monkeypatch.undo()
    attached.merge()


def test_a_merge_whose_rounding_loses_the_adapter_is_refused():
    attached = saved_in_memory(LLAMA, torch.bfloat16, std=0.0)
    with torch.no_grad():
        for _, parameter in attached.named_parameters():
            parameter.fill_(1e-3)  # updates of 7e-6: far under half a step of bfloat16 at 0.1
    with pytest.raises(AdapterError, match="of the adapter's effect"):
        attached.merge()


def test_a_merged_model_is_another_base(tmp_path):
    from lorica.models import fingerprint

    model = LLAMA.build(torch.float32)
    model.base_fingerprint, model.source = "f" * 64, "somewhere"
    attached = adapter.attach(model, LoRA(r=3, alpha=7))
    stir(attached.named_parameters())
    attached.merge()
    assert fingerprint(model) not in ("f" * 64, fingerprint(LLAMA.build(torch.float32)))
    assert model.source is None
    with pytest.raises(LoricaError, match="changes nothing"):
        adapter.attach(model, LoRA(r=2)).merge()
