"""What is combined and resized: PEFT reads it, and computes the same where it has the same operation.

PEFT            here        the same
cat             exact       always; of rsLoRA it inflates by the root of r in versions before its #3449
svd             svd         always
magnitude_prune_svd, ties_svd       magnitude, ties with weights 1/n for PEFT's 1: it divides by how many agree, and
                            elects before it weighs; with unequal weights it computes another thing
linear, ties, dare_linear ...       nothing: they act on A and B each, so that every B meets every A
"""

import json

import peft
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from peft_bases import BASES, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file, save_file
from test_peft_layers import CASES, ROUNDING, Case, saved, their_warnings
from test_peft_layers import theirs as with_layers

import lorica

LLAMA = next(base for base in BASES if base.name == "llama")
CONFIGS = {
    "a": {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"v_proj": 2}},
    "b": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"], "alpha_pattern": {"q_proj": 7}},
}


@pytest.fixture
def folder(tmp_path):
    return LLAMA.saved(tmp_path / "base")


def theirs(folder):
    with only_their_own_warnings():
        return hf.LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def both(folder, tmp_path):
    """PEFT's model with both adapters, which lie in `a` and `b` too."""
    for seed, (name, config) in enumerate(CONFIGS.items()):
        with only_their_own_warnings():
            model = get_peft_model(theirs(folder), LoraConfig(**config, task_type="CAUSAL_LM")).eval()
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.2 * torch.randn_like(parameter))
        with only_their_own_warnings():
            model.save_pretrained(tmp_path / name)
    with only_their_own_warnings():
        model = PeftModel.from_pretrained(theirs(folder), tmp_path / "a", adapter_name="a").eval()
        model.load_adapter(tmp_path / "b", "b")
    return model


@torch.no_grad()
def logits(model):
    return model(**LLAMA.inputs()).logits


def read_by_peft(folder, adapter):
    with only_their_own_warnings():
        return logits(PeftModel.from_pretrained(theirs(folder), adapter).eval())


def deltas(model, name):
    """PEFT's own W' - W of every adapted layer."""
    return {
        path.removeprefix("base_model.model."): module.get_delta_weight(name).double()
        for path, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer) and name in module.lora_A
    }


def close(found, expected, bound):
    for path, delta in expected.items():
        assert float((found[path] - delta).norm()) < bound * float(delta.norm()), path


def ours(both, folder, tmp_path):
    """The deltas of the folder `out`, as PEFT reads them."""
    with only_their_own_warnings():
        both.load_adapter(tmp_path / "out", "ours")
    return deltas(both, "ours")


@pytest.mark.parametrize("base", [None, "base"], ids=["from the files alone", "with the base"])
def test_exact_is_pefts_cat(base, both, folder, tmp_path):
    model = None if base is None else str(folder)
    found = lorica.combine({str(tmp_path / "a"): 0.7, str(tmp_path / "b"): -0.4}, tmp_path / "out", model=model)
    assert (found.unproven is None) == (base is not None)
    both.add_weighted_adapter(["a", "b"], [0.7, -0.4], "cat", combination_type="cat")
    close(ours(both, folder, tmp_path), deltas(both, "cat"), 1e-6)
    both.set_adapter("cat")
    expected = logits(both)
    assert distance(read_by_peft(folder, tmp_path / "out"), expected) < rounding(both)
    with only_their_own_warnings():
        assert distance(logits(theirs(folder)), expected) > 0.1


@pytest.mark.parametrize("r", [2, 3])
def test_svd_is_pefts_svd(r, both, folder, tmp_path):
    lorica.combine({str(tmp_path / "a"): 0.7, str(tmp_path / "b"): 0.3}, tmp_path / "out", how="svd", r=r)
    both.add_weighted_adapter(["a", "b"], [0.7, 0.3], "svd", combination_type="svd", svd_rank=r)
    close(ours(both, folder, tmp_path), deltas(both, "svd"), 1e-5)


def test_magnitude_is_pefts_pruning_of_the_deltas(both, folder, tmp_path):
    how = {"how": "magnitude", "density": 0.4, "r": 5}
    lorica.combine({str(tmp_path / "a"): 0.7, str(tmp_path / "b"): 0.3}, tmp_path / "out", **how)
    both.add_weighted_adapter(
        ["a", "b"], [0.7, 0.3], "m", combination_type="magnitude_prune_svd", svd_rank=5, density=0.4
    )
    close(ours(both, folder, tmp_path), deltas(both, "m"), 1e-4)


def test_ties_with_weights_of_one_nth_is_pefts_with_weights_of_one(both, folder, tmp_path):
    lorica.combine({str(tmp_path / "a"): 0.5, str(tmp_path / "b"): 0.5}, tmp_path / "out", how="ties", density=0.4, r=5)
    both.add_weighted_adapter(["a", "b"], [1.0, 1.0], "t", combination_type="ties_svd", svd_rank=5, density=0.4)
    close(ours(both, folder, tmp_path), deltas(both, "t"), 1e-4)


def test_ties_with_unequal_weights_is_another_thing_than_pefts(both, folder, tmp_path):
    """Where both agree PEFT has half of the blend; here it is the blend.  At a density of 0.99999 all but the smallest
    entry are kept; v_proj (16, 32) alone loses nothing at a rank of 16, beyond which PEFT's result cannot be used."""
    how = {"density": 0.99999, "r": 16}
    lorica.combine({str(tmp_path / "a"): 0.7, str(tmp_path / "b"): 0.3}, tmp_path / "out", how="ties", **how)
    both.add_weighted_adapter(["a", "b"], [0.7, 0.3], "t", combination_type="ties_svd", svd_rank=16, density=0.99999)
    a, b, mine, other = deltas(both, "a"), deltas(both, "b"), ours(both, folder, tmp_path), deltas(both, "t")
    for path in (path for path in a if path.endswith("v_proj")):
        agree = (a[path] * b[path] > 0) & (a[path].abs() > a[path].abs().min()) & (b[path].abs() > b[path].abs().min())
        blend = (0.7 * a[path] + 0.3 * b[path])[agree]
        assert float((mine[path][agree] - blend).norm() / blend.norm()) < 1e-5
        assert float((other[path][agree] - blend / 2).norm() / blend.norm()) < 1e-5


@pytest.mark.parametrize("with_base", [False, True])
def test_peft_reads_what_was_resized(with_base, both, folder, tmp_path):
    """Site by site the best of its rank, whose ranks differ; with patterns of ranks and alphas."""
    lorica.resize(tmp_path / "a", tmp_path / "out", energy=0.8, model=str(folder) if with_base else None)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    found, before = ours(both, folder, tmp_path), deltas(both, "a")
    for path, delta in before.items():
        U, S, Vt = torch.linalg.svd(delta, full_matrices=False)
        r = int((S.square().cumsum(0) < 0.8 * S.square().sum()).sum()) + 1
        assert float((found[path] - (U[:, :r] * S[:r]) @ Vt[:r]).norm() / delta.norm()) < 1e-5


def test_an_adapter_on_some_layers_stays_on_them_when_peft_reads_it(folder, tmp_path):
    """Short names would have PEFT put modules around layers that no tensor is for."""
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    with only_their_own_warnings():
        model = get_peft_model(theirs(folder), config)
    add_noise([p for p in model.parameters() if p.requires_grad])
    with only_their_own_warnings():
        model.save_pretrained(tmp_path / "a")
    lorica.combine({str(tmp_path / "a"): 2.0}, tmp_path / "out")
    with only_their_own_warnings():
        again = PeftModel.from_pretrained(theirs(folder), tmp_path / "out")
    assert list(deltas(again, "default")) == ["model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize("how", [{}, {"how": "svd", "r": 3}], ids=["exact", "svd"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_peft_reads_convolutions_and_experts_that_were_combined_without_a_base(case: Case, how, tmp_path):
    """Of one adapter, with all of its rank, the result is that adapter."""
    model = with_layers(case)
    with torch.no_grad():
        expected, before = case.base.output(model), case.base.output(case.base.build(torch.float32))
    saved(model, tmp_path / "a")
    found = lorica.combine({str(tmp_path / "a"): 1.0}, tmp_path / "out", **how)
    assert found.unproven is not None
    with their_warnings(), torch.no_grad():
        again = PeftModel.from_pretrained(case.base.build(torch.float32), tmp_path / "out").eval()
        assert distance(case.base.output(again), expected) < ROUNDING
    assert distance(expected, before) > 0.05


def test_an_embedding_that_a_file_brings_has_to_be_the_bases_own(folder, tmp_path):
    """PEFT writes it beside an adapter on embeddings; only the base tells whether it is another."""
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    with only_their_own_warnings():
        model = get_peft_model(theirs(folder), config)
        add_noise([p for p in model.parameters() if p.requires_grad])
        model.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    with pytest.raises(lorica.AdapterError, match="name the base with --model"):
        lorica.combine({str(tmp_path / "a"): 2.0}, tmp_path / "out")
    lorica.combine({str(tmp_path / "a"): 1.0}, tmp_path / "out", model=str(folder))
    assert distance(read_by_peft(folder, tmp_path / "out"), logits(model.eval())) < rounding(model)
    place = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(place)
    key = next(key for key in tensors if key.endswith("embed_tokens.base_layer.weight"))
    tensors[key] = tensors[key] + 1
    save_file(tensors, place, {"format": "pt"})
    with pytest.raises(lorica.AdapterError, match="not this base's"):
        lorica.combine({str(tmp_path / "a"): 1.0}, tmp_path / "second", model=str(folder))


def test_adapters_that_name_other_bases_are_refused(both, tmp_path):
    place = tmp_path / "b" / "adapter_config.json"
    config = json.loads(place.read_text())
    place.write_text(json.dumps({**config, "base_model_name_or_path": "some/other"}))
    weights = {str(tmp_path / "a"): 0.7, str(tmp_path / "b"): 0.3}
    with pytest.raises(lorica.AdapterError, match="names the base some/other"):
        lorica.combine(weights, tmp_path / "out")
    lorica.combine(weights, tmp_path / "out", other_base=True)
