"""Trained rows of embeddings travel between PEFT and Lorica: tied or not, in a vocabulary as it was or enlarged."""

import warnings

import peft
import pytest
import torch
import transformers as hf
from peft_bases import DECODER, VOCABULARY, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file, save_file

import lorica
from lorica import adapter
from lorica.errors import AdapterError
from lorica.models import load_base
from lorica.models.vocabulary import resize

FAMILIES = {
    "llama tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**{**DECODER, "tie_word_embeddings": True})),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    ),
}
TARGETS = {"gpt2": ["c_attn"], "t5": ["q", "v"]}
NEW = [VOCABULARY, VOCABULARY + 1]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    torch.manual_seed(0)
    with only_their_own_warnings():
        model = FAMILIES[family]()
        for parameter in model.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def theirs(family, folder, grown):
    kind = {"gpt2": hf.GPT2LMHeadModel, "t5": hf.T5ForConditionalGeneration}.get(family, hf.LlamaForCausalLM)
    with only_their_own_warnings():
        model = kind.from_pretrained(folder).eval()
        if grown:
            model.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
    return model


def ours(folder, grown):
    model = load_base(folder)
    if grown:
        resize(model, VOCABULARY + 2)
    return model


def config(family, tokens):
    targets = TARGETS.get(family, ["q_proj"])
    return peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets, trainable_token_indices=tokens, fan_in_fan_out=family == "gpt2"
    )


def inputs(family, tokens):
    ids = torch.tensor([[3, tokens[0], 9, tokens[1], 4, 11]])
    return {"input_ids": ids, "decoder_input_ids": ids[:, :3]} if family == "t5" else {"input_ids": ids}


def saved(model, folder):
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        warnings.filterwarnings("ignore", message="Could not find a config file")
        model.save_pretrained(folder)


@pytest.mark.parametrize("grown", [False, True], ids=["as it was", "enlarged"])
def test_rows_that_peft_trained_compute_the_same_here(family, folder, grown, tmp_path):
    tokens = NEW if grown else [5, 9]
    with only_their_own_warnings():
        model = peft.get_peft_model(theirs(family, folder, grown), config(family, tokens)).eval()
    add_noise([p for p in model.parameters() if p.requires_grad])
    saved(model, tmp_path / "a")
    base = ours(folder, grown)
    given = inputs(family, tokens)
    with torch.no_grad():
        expected, before = model(**given).logits, base(**given).logits
        found = adapter.load(base, tmp_path / "a")(**given).logits
    assert distance(expected, before) > 0.1
    assert distance(found, expected) < rounding(base)


@pytest.mark.parametrize("grown", [False, True], ids=["as it was", "enlarged"])
def test_rows_trained_here_compute_the_same_in_peft(family, folder, grown, tmp_path):
    tokens = NEW if grown else [5, 9]
    head = {"embed_tokens": tokens, "lm_head": tokens} if family == "llama" else tokens
    base = ours(folder, grown)
    attached = adapter.attach(base, lorica.LoRA.from_peft(config(family, head)))
    add_noise(attached.parameters())
    given = inputs(family, tokens)
    attached.save(tmp_path / "a")
    with only_their_own_warnings(), torch.no_grad():
        expected = attached(**given).logits
        model = peft.PeftModel.from_pretrained(theirs(family, folder, grown), str(tmp_path / "a")).eval()
        assert distance(model(**given).logits, expected) < rounding(base)


def test_the_line_of_trainable_parameters_counts_the_rows(folder, family, capsys):
    with only_their_own_warnings():
        peft.get_peft_model(theirs(family, folder, False), config(family, [5, 9])).print_trainable_parameters()
    expected = capsys.readouterr().out.split("||")[0]
    adapter.attach(load_base(folder), config(family, [5, 9])).print_trainable_parameters()
    assert capsys.readouterr().out.split("||")[0] == expected


@pytest.mark.parametrize("family", ["llama tied", "llama"], indirect=True)
def test_an_enlarged_vocabulary_of_peft_on_a_small_or_another_base_is_refused_in_one_line(family, folder, tmp_path):
    with only_their_own_warnings():
        model = peft.get_peft_model(theirs(family, folder, True), config(family, NEW)).eval()
    add_noise([p for p in model.parameters() if p.requires_grad])
    saved(model, tmp_path / "a")
    with pytest.raises(AdapterError, match=r"has 63 rows, this base's 61; add its tokens first: lorica\.add_tokens"):
        adapter.load(load_base(folder), tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    held = load_file(path)
    key = next(key for key in held if key.endswith("base_layer.weight"))
    held[key][7] += 1
    save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="which is not this base's"):
        adapter.load(ours(folder, True), tmp_path / "a")


@pytest.mark.parametrize("family", ["llama tied", "gpt2"], indirect=True)
def test_trainable_tokens_alone_travel_both_ways(family, folder, tmp_path):
    given = inputs(family, [5, 9])
    asked = peft.TrainableTokensConfig(token_indices=[5, 9])
    with only_their_own_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        model = peft.get_peft_model(theirs(family, folder, False), asked).eval()
        add_noise([p for p in model.parameters() if p.requires_grad])
        expected = model(**given).logits
    saved(model, tmp_path / "theirs")
    attached = adapter.load(load_base(folder), tmp_path / "theirs")
    with torch.no_grad():
        assert distance(attached(**given).logits, expected) < rounding(attached.model)
    attached.save(tmp_path / "ours")
    with only_their_own_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        again = peft.PeftModel.from_pretrained(theirs(family, folder, False), str(tmp_path / "ours")).eval()
        assert distance(again(**given).logits, expected) < rounding(attached.model)
    own = adapter.attach(load_base(folder), asked)
    assert own.trainable_parameters == 2 * 32
