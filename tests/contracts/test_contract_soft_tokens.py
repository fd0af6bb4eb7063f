"""TokensBefore: soft tokens that are the embeddings of real ones act as those do, and are never given back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.adapter import attach
from lorica.errors import ModelError
from lorica.methods.lora import LoRA
from lorica.models.cache import KVCache
from lorica.models.layout import Layout
from ten_line_methods import Prefix, Prompt
from tiny_bases import BERT, GPT2, LLAMA, T5, Base, stir

P = 4
WORDS = torch.tensor([7, 31, 12, 50])
CLOSE = {"rtol": 0.0, "atol": 1e-10}
KNOWN = [LLAMA, BERT, T5]
EMBEDDING = {
    "llama": "model.embed_tokens",
    "gpt2": "transformer.wte",
    "bert": "bert.embeddings.word_embeddings",
    "t5": "encoder.embed_tokens",
}


def speaking(base: Base) -> nn.Module:
    """The base with soft tokens that are the embeddings of WORDS."""
    model = base.build()
    attached = attach(model, Prompt(length=P))
    table: Any = model.get_submodule(EMBEDDING[base.name])
    with torch.no_grad():
        next(attached.parameters()).copy_(table.weight[WORDS])
    return model


def spoken(base: Base) -> dict[str, Tensor]:
    """The base's inputs with WORDS before every row."""
    given = base.inputs()
    rows = len(given["input_ids"])
    given["input_ids"] = torch.cat([WORDS.expand(rows, -1), given["input_ids"]], 1)
    given["attention_mask"] = torch.cat([torch.ones(rows, P).long(), given["attention_mask"]], 1)
    return given


@torch.no_grad()
def test_in_the_decoder_they_act_as_the_tokens_whose_embeddings_they_are():
    model, base = speaking(LLAMA), LLAMA.build()
    expected = LLAMA.read(base(**spoken(LLAMA)))[:, P:]
    torch.testing.assert_close(LLAMA.output(model), expected, **CLOSE)


@torch.no_grad()
def test_in_t5_the_decoder_attends_to_them_too():
    model, base = speaking(T5), T5.build()
    torch.testing.assert_close(T5.output(model), T5.read(base(**spoken(T5))), **CLOSE)
    encoded = model(**T5.inputs()).encoder_last_hidden_state
    torch.testing.assert_close(encoded, base(**spoken(T5)).encoder_last_hidden_state[:, P:], **CLOSE)


@torch.no_grad()
def test_in_bert_the_pooler_reads_the_first_real_token():
    model: Any = speaking(BERT)
    base: Any = BERT.build()
    hidden = base.bert(**spoken(BERT)).last_hidden_state[:, P:]
    inside = model.bert(**BERT.inputs())
    torch.testing.assert_close(inside.last_hidden_state, hidden, **CLOSE)
    torch.testing.assert_close(inside.pooler_output, base.bert.pooler(hidden), **CLOSE)
    torch.testing.assert_close(BERT.output(model), base.classifier(base.bert.pooler(hidden)), **CLOSE)


@torch.no_grad()
def test_bert_may_be_called_with_positions_types_and_no_mask():
    model: Any = speaking(BERT)
    ids = BERT.inputs()["input_ids"]
    plain = model.bert(ids)
    stated = model.bert(ids, torch.ones_like(ids), torch.zeros_like(ids), torch.arange(ids.shape[1])[None])
    torch.testing.assert_close(plain.last_hidden_state, stated.last_hidden_state, **CLOSE)
    embedded = model.bert(inputs_embeds=model.bert.embeddings.word_embeddings(ids))
    torch.testing.assert_close(plain.last_hidden_state, embedded.last_hidden_state, **CLOSE)


@pytest.mark.parametrize("base", [BERT, T5], ids=str)
@torch.no_grad()
def test_recorded_layers_show_real_tokens_only(base: Base):
    model: Any = speaking(base)
    model.set_attn_implementation("eager")
    out = model(**base.inputs(), output_hidden_states=True, output_attentions=True)
    length = base.inputs()["input_ids"].shape[1]
    hidden = out.hidden_states if base is BERT else out.encoder_hidden_states
    attention = out.attentions if base is BERT else out.encoder_attentions
    assert {state.shape[1] for state in hidden} == {length}
    assert {weights.shape[-2:] for weights in attention} == {(length, length)}
    if base is T5:
        assert {weights.shape[-1] for weights in out.cross_attentions} == {length}


@torch.no_grad()
def test_t5_generates_with_them():
    model: Any = speaking(T5)
    base: Any = T5.build()
    names = ("input_ids", "attention_mask")
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    ours = model.generate(**{name: T5.inputs()[name] for name in names}, **options)
    assert torch.equal(ours, base.generate(**{name: spoken(T5)[name] for name in names}, **options))


@pytest.mark.parametrize("base", [LLAMA, GPT2, BERT, T5], ids=str)
@torch.no_grad()
def test_padding_beside_soft_tokens_changes_nothing(base: Base):
    model, given = speaking(base), base.inputs()
    together = base.output(model)
    for row, count in enumerate(given["attention_mask"].sum(1).tolist()):
        alone = {name: value[row : row + 1] for name, value in given.items()}
        alone |= {name: alone[name][:, :count] for name in ("input_ids", "attention_mask")}
        out = base.read(model(**alone))[0]
        torch.testing.assert_close(together[row][: len(out)], out, rtol=0, atol=1e-10)


@pytest.mark.parametrize("methods", [[Prompt()], [Prompt(), Prefix(), LoRA(r=3, alpha=8)]], ids=["alone", "in company"])
@torch.no_grad()
def test_packed_separate_and_cached_documents_have_the_same_soft_tokens(methods: list[Any]):
    model: Any = LLAMA.build()
    stir(attach(model, methods).named_parameters())
    generator = torch.Generator().manual_seed(2)
    documents = [torch.randint(3, 60, (count,), generator=generator) for count in (5, 1, 8)]
    separate = [model.hidden(tokens, Layout.of([len(tokens)])) for tokens in documents]
    packed = model.hidden(torch.cat(documents), Layout.of([5, 1, 8]))
    torch.testing.assert_close(packed, torch.cat(separate), **CLOSE)
    cache = KVCache(3)
    first = model.hidden(torch.cat([d[:3] for d in documents]), Layout.of([3, 1, 3], cache=cache))
    second = model.hidden(torch.cat([documents[0][3:], documents[2][3:6]]), Layout.of([2, 0, 3], cache=cache))
    third = model.hidden(documents[2][6:], Layout.of([0, 0, 2], cache=cache))
    cached = torch.cat([first[:3], second[:2], first[3:4], first[4:], second[2:], third])
    torch.testing.assert_close(cached, torch.cat(separate), **CLOSE)


@torch.no_grad()
def test_a_document_that_begins_later_gets_its_soft_tokens_then():
    model: Any = LLAMA.build()
    stir(attach(model, Prompt()).named_parameters())
    early, late = torch.tensor([5, 6, 7]), torch.tensor([8, 9])
    cache = KVCache(2)
    first = model.hidden(early[:2], Layout.of([2, 0], cache=cache))
    second = model.hidden(torch.cat([early[2:], late]), Layout.of([1, 2], cache=cache))
    expected = torch.cat([model.hidden(early, Layout.of([3])), model.hidden(late, Layout.of([2]))])
    torch.testing.assert_close(torch.cat([first, second]), expected, **CLOSE)


def test_too_many_soft_tokens_for_the_bases_positions_are_an_error():
    model: Any = BERT.build()
    attach(model, Prompt(length=60))
    with pytest.raises(ModelError, match="60 soft tokens and 9 tokens are more than the base's 64 positions"):
        BERT.output(model)
