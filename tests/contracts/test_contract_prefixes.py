"""KeysValuesBefore: every token sees P learned keys and values, and nothing else changes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.adapter import attach
from lorica.errors import TargetError
from lorica.models import install, sites
from lorica.models.cache import KVCache
from lorica.models.causal_lm import CausalLM
from lorica.models.layout import Layout
from ten_line_methods import Prefix
from tiny_bases import BERT, GPT2, LLAMA, T5, VIT, Base, stir

P = 4
CLOSE = {"rtol": 0.0, "atol": 1e-10}


def with_prefix(base: Base, length: int = P) -> nn.Module:
    model = base.build()
    stir(attach(model, Prefix(length=length)).named_parameters())
    return model


def naive(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, seen: Tensor, bias: Tensor, scale: float
) -> Tensor:
    """q, k, v (S, heads, E) of one document, keys and values (P, heads, E), bias (heads, S, S) -> (S, heads * E)."""
    out = torch.zeros_like(q)
    for head in range(q.shape[1]):
        for i in range(len(q)):
            scores = [scale * (q[i, head] @ key) for key in keys[:, head]]
            scores += [scale * (q[i, head] @ k[j, head]) + bias[head, i, j] for j in range(len(k)) if seen[i, j]]
            shares = torch.softmax(torch.stack(scores), 0)
            what = [*values[:, head], *(v[j, head] for j in range(len(v)) if seen[i, j])]
            out[i, head] = (shares[:, None] * torch.stack(what)).sum(0)
    return out.flatten(1)


def turned(x: Tensor, first: int, theta: float = 10000.0) -> Tensor:
    """x (S, heads, E) as complex pairs (i, i + E/2), turned by (first + position) * theta^(-2i/E).

    The frequencies are rounded to float32, as every implementation of the family keeps them.
    """
    half = x.shape[-1] // 2
    frequencies = (1.0 / theta ** (torch.arange(half, dtype=torch.float32) / half)).double()
    angle = (first + torch.arange(len(x)).double())[:, None] * frequencies
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([pairs.real, pairs.imag], -1)


def halves(x: Tensor, width: int) -> Tensor:
    return x.unflatten(-1, (-1, width))


def in_llama(layer: Any, x: Tensor) -> Tensor:
    q, k, v = (halves(proj(x), 8) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    keys, values = (part.repeat_interleave(2, 1) for part in layer.prefix.adapter())
    q, k, v = turned(q, P), turned(k, P).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return layer.o_proj(naive(q, k, v, keys, values, causal, torch.zeros(4, len(x), len(x)), 8**-0.5))


def in_gpt2(layer: Any, x: Tensor) -> Tensor:
    q, k, v = (halves(part, 8) for part in layer.c_attn(x).split(32, -1))
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    keys, values = layer.prefix_edit.adapter()
    return layer.c_proj(naive(q, k, v, keys, values, causal, torch.zeros(4, len(x), len(x)), 8**-0.5))


def in_bert(layer: Any, x: Tensor) -> Tensor:
    q, k, v = (halves(proj(x), 8) for proj in (layer.query, layer.key, layer.value))
    return _all_seen(layer, x, q, k, v)


def in_vit(layer: Any, x: Tensor) -> Tensor:
    q, k, v = (halves(proj(x), 8) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    return layer.o_proj(_all_seen(layer, x, q, k, v))


def in_t5(layer: Any, x: Tensor) -> Tensor:
    q, k, v = (halves(proj(x), 8) for proj in (layer.q, layer.k, layer.v))
    bias = (
        layer.compute_bias(len(x), len(x))[0] if layer.has_relative_attention_bias else torch.zeros(4, len(x), len(x))
    )
    seen = torch.ones(len(x), len(x), dtype=torch.bool)
    seen = seen.tril() if layer.is_decoder else seen
    return layer.o(naive(q, k, v, *layer.prefix_edit.adapter(), seen, bias, 1.0))


def _all_seen(layer: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = torch.ones(len(x), len(x), dtype=torch.bool)
    keys, values = layer.prefix_edit.adapter()
    return naive(q, k, v, keys, values, seen, torch.zeros(4, len(x), len(x)), 8**-0.5)


LAYERS = [
    (LLAMA, "model.layers.1.self_attn", in_llama),
    (GPT2, "transformer.h.1.attn", in_gpt2),
    (BERT, "bert.encoder.layer.1.attention.self", in_bert),
    (VIT, "vit.layers.1.attention", in_vit),
    (T5, "encoder.block.0.layer.0.SelfAttention", in_t5),
    (T5, "decoder.block.0.layer.0.SelfAttention", in_t5),
]


@pytest.mark.parametrize(("base", "name", "oracle"), LAYERS, ids=[f"{base}-{name}" for base, name, _ in LAYERS])
@torch.no_grad()
def test_attention_with_a_prefix_is_attention_over_the_concatenation(base: Base, name: str, oracle: Any):
    model = with_prefix(base)
    layer, record = model.get_submodule(name), []
    layer.register_forward_hook(lambda module, args, kwargs, out: record.append((args, kwargs, out)), with_kwargs=True)
    base.output(model, slice(1))
    args, kwargs, out = record[0]
    x = args[0] if args else kwargs["hidden_states"]
    got = out[0] if isinstance(out, tuple) else out
    x, got = (part[0] if part.dim() == 3 else part for part in (x, got))
    torch.testing.assert_close(got, oracle(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("base", [GPT2, BERT, T5, VIT], ids=str)
@torch.no_grad()
def test_a_prefix_is_the_same_by_either_implementation_of_attention(base: Base, implementation: str):
    expected = base.output(with_prefix(base))
    model: Any = base.build()
    model.set_attn_implementation(implementation)
    stir(attach(model, Prefix(length=P)).named_parameters())
    # ViT's own eager attention takes its softmax in float32
    tolerance = 1e-5 if base is VIT and implementation == "eager" else 1e-10
    torch.testing.assert_close(base.output(model), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("base", [LLAMA, GPT2, BERT, T5], ids=str)
@torch.no_grad()
def test_padding_beside_a_prefix_changes_nothing(base: Base):
    model, given = with_prefix(base), base.inputs()
    together = base.output(model)
    for row, count in enumerate(given["attention_mask"].sum(1).tolist()):
        alone = {name: value[row : row + 1] for name, value in given.items()}
        for name in ("input_ids", "attention_mask"):
            alone[name] = alone[name][:, :count]
        out = base.read(model(**alone))[0]
        torch.testing.assert_close(together[row][: len(out)], out, rtol=0, atol=1e-10)


@torch.no_grad()
def test_packed_separate_and_cached_documents_see_the_same_prefix():
    model: Any = with_prefix(LLAMA)
    assert isinstance(model, CausalLM)
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
def test_a_long_document_sees_the_prefix_too():
    """Long documents take another attention without one."""
    model: Any = with_prefix(LLAMA)
    tokens = torch.randint(3, 60, (400,), generator=torch.Generator().manual_seed(2))
    whole = model.hidden(tokens, Layout.of([400]))
    cache = KVCache(1)
    parts = [model.hidden(part, Layout.of([len(part)], cache=cache)) for part in tokens.split(150)]
    torch.testing.assert_close(torch.cat(parts), whole, **CLOSE)


@torch.no_grad()
def test_generation_with_transformers_cache_never_stores_the_prefix():
    model: Any = with_prefix(GPT2)
    ids = GPT2.inputs()["input_ids"][:2, :5]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 6}
    cached = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    assert torch.equal(cached, plain)
    out = model(ids, use_cache=True)
    assert out.past_key_values.get_seq_length() == ids.shape[1]


@torch.no_grad()
def test_generation_of_an_encoder_decoder_keeps_its_prefixes():
    model: Any = with_prefix(T5)
    given = {name: T5.inputs()[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    cached = model.generate(**given, use_cache=True, **options)
    assert torch.equal(cached, model.generate(**given, use_cache=False, **options))


def test_attention_that_takes_no_open_mask_is_refused():
    model: Any = GPT2.build()
    model.config._attn_implementation_internal = "flash_attention_2"
    edit = Prefix().edits(sites(model))[0]
    with pytest.raises(TargetError, match="not flash_attention_2"):
        install(model, edit.place, edit.site, nn.Identity())


def test_attention_of_another_library_is_refused():
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    site = replace(Prefix().edits(sites(LLAMA.build()))[0].site, name="0")
    with pytest.raises(TargetError, match="MultiheadAttention takes no prefix"):
        install(model, "keys_values_before", site, nn.Identity())
