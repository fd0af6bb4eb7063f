"""Probes are the same for ever and answered by every family; the bound of rounding holds and is no blank cheque."""

import pytest
import torch
import transformers as hf

from lorica.errors import ModelError
from lorica.kernels.native import library
from lorica.models.numerics import changed, dtype_of, numerics, rounding, threads_of
from lorica.models.probe import Probe, hashed
from tiny_bases import BASES, LLAMA, filled

TEXT = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
IMAGE = {"image_size": 12, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
BART = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 32,
}
WHISPER = {**BART, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 24, "pad_token_id": 0}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS = {
    "bart classification": lambda: hf.BartForSequenceClassification(hf.BartConfig(**BART)),
    "whisper": lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER | IDS, decoder_start_token_id=1)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**TEXT, max_position_embeddings=20)),
    "clip": lambda: hf.CLIPModel(
        hf.CLIPConfig(text_config={**TEXT, **IDS}, vision_config={**IMAGE, "intermediate_size": 40}, projection_dim=16)
    ),
    "wav2vec2": lambda: hf.Wav2Vec2Model(
        hf.Wav2Vec2Config(
            **TEXT | {"vocab_size": 32}, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, mask_time_prob=0.0
        )
    ),
}


def read(model):
    return Probe.of(model).read(model)


def test_the_inputs_and_places_of_a_probe_never_change():
    """These numbers are in every lorica.json that was ever written."""
    assert Probe.of(LLAMA.build()).inputs["input_ids"].tolist()[0][:4] == [37, 54, 25, 54]
    assert [hashed("place", index, 32000) for index in range(3)] == [30997, 30737, 8692]


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_base_answers_its_probe_and_is_seen_in_it(name):
    model = filled(MODELS[name]()).eval()
    before = read(model)
    assert all(value.dim() == 2 and bool(value.isfinite().all()) for value in before.values())
    modules = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight.requires_grad]
    with torch.no_grad():
        for module in modules[:1] + modules[-1:]:
            module.weight.mul_(1.25)
    after = read(model)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_special_token_is_never_part_of_a_probe_but_the_end_in_its_last_place():
    model = hf.RobertaModel(hf.RobertaConfig(**TEXT | {"vocab_size": 6}, max_position_embeddings=20))
    assert set(Probe.of(model).inputs["input_ids"][0, :-1].tolist()) <= {3, 4, 5}
    assert Probe.of(model).inputs["input_ids"][0, -1] == model.config.eos_token_id


def test_what_cannot_be_asked_is_an_error_that_says_why():
    with pytest.raises(ModelError, match="what Linear takes as input is not known here"):
        Probe.of(torch.nn.Linear(2, 2))
    model = LLAMA.build()
    probe = Probe.of(model)
    model.lm_head = torch.nn.Identity()
    model.model.norm = None
    with pytest.raises(ModelError, match="does not answer its probe"):
        probe.read(model)


@pytest.mark.parametrize("base", BASES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_stays_within_its_bound_and_a_changed_weight_does_not(base, dtype):
    exact, model = base.build(torch.float64), base.build(dtype)
    bound = rounding(model, numerics(model))
    assert apart(read(exact), read(model)) < bound
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.mul_(1 + 2 * bound)
    if dtype == torch.float32:
        assert apart(read(exact), read(model)) > bound


def apart(one, other):
    return max(float((one[key] - other[key]).abs().max() / one[key].abs().max()) for key in one)


def test_numerics_name_what_differs():
    then, now = numerics(LLAMA.build(torch.float32)), numerics(LLAMA.build(torch.bfloat16))
    assert changed(then, then) == []
    assert changed(then, now | {"kernels": "none"}) == ["dtype bfloat16 (was float32)"]
    assert dtype_of(now) == "bfloat16"
    assert dtype_of({"dtype": "bfloat16 float32"}) is None


def test_a_record_without_kernels_was_made_by_torch():
    served = numerics(LLAMA.build(torch.bfloat16))
    assert served["kernels"] == library().name
    recorded = {key: value for key, value in served.items() if key != "kernels"}
    assert changed(recorded, served | {"kernels": "none"}) == []
    assert changed(recorded, served | {"kernels": "75615f"}) == ["kernels 75615f (was none)"]
    assert numerics(LLAMA.build(torch.float32))["kernels"] == "none"


def test_the_recorded_number_of_threads_is_used_and_given_back():
    before = torch.get_num_threads()
    with threads_of({"threads": before + 1}):
        assert torch.get_num_threads() == before + 1
    with threads_of({"threads": "many"}):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
