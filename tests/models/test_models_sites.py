"""Sites: every family shows the same roles, shapes and places, whatever its modules are called."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import decoder_family
from lorica.models import context_limit, sites
from lorica.models.causal_lm import CausalLM
from lorica.models.edited import AfterModule, AroundModule
from lorica.site import Site

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
D, FF, V = 32, 40, 61


def built(model: str, config: str, **options: Any) -> nn.Module:
    import transformers

    with torch.device("meta"):
        return getattr(transformers, model)(getattr(transformers, config)(**options))


def decoder(family: str) -> Callable[[], nn.Module]:
    return lambda: built(f"{family}ForCausalLM", f"{family}Config", **SMALL, num_key_value_heads=2, head_dim=8)


def small(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: built(model, config, **{**SMALL, **options})


def bare(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: built(model, config, vocab_size=V, **options)


GATED = {"q": 2, "k": 2, "v": 2, "o": 2, "gate": 2, "up": 2, "down": 2}
PLAIN = {"q": 2, "k": 2, "v": 2, "o": 2, "fc1": 2, "fc2": 2}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
VIT = {"image_size": 12, "patch_size": 4}

# make, linears by role, (sublayers, attentions), (heads_kv, d_head), tokens, head
FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], tuple[int, int], tuple[int, int], str, str]] = {
    "llama": (decoder("Llama"), GATED, (4, 2), (2, 8), "model.embed_tokens", "lm_head"),
    "mistral": (decoder("Mistral"), GATED, (4, 2), (2, 8), "model.embed_tokens", "lm_head"),
    "qwen2": (decoder("Qwen2"), GATED, (4, 2), (2, 8), "model.embed_tokens", "lm_head"),
    "qwen3": (decoder("Qwen3"), GATED, (4, 2), (2, 8), "model.embed_tokens", "lm_head"),
    "phi3": (
        small("Phi3ForCausalLM", "Phi3Config", num_key_value_heads=2, pad_token_id=0),
        GATED,
        (4, 2),
        (2, 8),
        "model.embed_tokens",
        "lm_head",
    ),
    "gpt2": (
        bare("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, n_inner=40),
        PLAIN,
        (4, 2),
        (4, 8),
        "transformer.wte",
        "lm_head",
    ),
    "gpt_neox": (
        small("GPTNeoXForCausalLM", "GPTNeoXConfig"),
        PLAIN,
        (4, 2),
        (4, 8),
        "gpt_neox.embed_in",
        "lm_head",
    ),
    "bloom": (
        bare("BloomForCausalLM", "BloomConfig", hidden_size=32, n_layer=2, n_head=4),
        PLAIN,
        (4, 2),
        (4, 8),
        "transformer.word_embeddings",
        "lm_head",
    ),
    "falcon": (
        small("FalconForCausalLM", "FalconConfig", multi_query=True),
        PLAIN,
        (4, 2),
        (1, 8),
        "transformer.word_embeddings",
        "lm_head",
    ),
    "bert": (
        small("BertForMaskedLM", "BertConfig"),
        {**PLAIN, "": 1},
        (4, 2),
        (4, 8),
        "bert.embeddings.word_embeddings",
        "cls.predictions.decoder",
    ),
    "roberta": (
        small("RobertaForSequenceClassification", "RobertaConfig"),
        PLAIN,
        (4, 2),
        (4, 8),
        "roberta.embeddings.word_embeddings",
        "classifier.out_proj",
    ),
    "distilbert": (
        bare("DistilBertModel", "DistilBertConfig", dim=32, n_layers=2, n_heads=4, hidden_dim=40),
        PLAIN,
        (4, 2),
        (4, 8),
        "embeddings.word_embeddings",
        "",
    ),
    "t5": (
        bare("T5ForConditionalGeneration", "T5Config", **T5, feed_forward_proj="gated-gelu"),
        {"q": 6, "k": 6, "v": 6, "o": 6, "gate": 4, "up": 4, "fc2": 4},
        (10, 6),
        (4, 8),
        "encoder.embed_tokens",
        "lm_head",
    ),
    "bart": (
        bare("BartForConditionalGeneration", "BartConfig", **BART, decoder_attention_heads=4),
        {"q": 6, "k": 6, "v": 6, "o": 6, "fc1": 4, "fc2": 4},
        (10, 6),
        (4, 8),
        "model.encoder.embed_tokens",
        "lm_head",
    ),
    "vit": (
        small("ViTForImageClassification", "ViTConfig", **VIT),
        PLAIN,
        (4, 2),
        (4, 8),
        "",
        "classifier",
    ),
}
EVERY = pytest.mark.parametrize("family", FAMILIES)


def of(kind: str, found: tuple[Site, ...]) -> list[Site]:
    return [site for site in found if site.kind == kind]


@EVERY
def test_every_linear_has_the_role_it_plays_and_its_own_shape(family: str) -> None:
    make, roles, _, _, _, head = FAMILIES[family]
    model = make()
    linears = of("linear", sites(model))
    counted = Counter(role for site in linears if "head" not in site.roles for role in site.roles or ("",))
    assert counted == roles
    for site in linears:
        module: Any = model.get_submodule(site.name)
        stored = tuple(module.weight.shape)
        assert site.shape == (stored[::-1] if site.transposed else stored)
        assert site.bias == (module.bias is not None)
    heads = [site.name for site in linears if "head" in site.roles]
    assert head in heads if head else not heads


@EVERY
def test_sublayers_and_attentions_are_found_in_every_layer(family: str) -> None:
    make, _, (sublayers, attentions), shape, tokens, _ = FAMILIES[family]
    found = sites(make())
    assert len(of("sublayer", found)) == sublayers
    assert {site.shape for site in of("sublayer", found)} == {(D,)}
    assert len(of("attention", found)) == attentions
    assert {site.shape for site in of("attention", found)} == {shape}
    assert {site.layer for site in of("attention", found)} == {0, 1}
    assert [(site.name, site.shape) for site in of("tokens", found)] == ([(tokens, (V, D))] if tokens else [])


@EVERY
def test_every_parameter_is_a_site_once_under_the_name_pytorch_gives_it(family: str) -> None:
    model = FAMILIES[family][0]()
    found = {site.name: site.shape for site in of("parameter", sites(model))}
    assert found == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_roles_name_what_a_sublayer_and_an_attention_belong_to() -> None:
    found = sites(FAMILIES["t5"][0]())
    counted = Counter(site.roles for site in of("sublayer", found))
    assert counted == {("attention",): 4, ("cross_attention",): 2, ("mlp",): 4}
    assert Counter(site.roles for site in of("attention", found)) == {("attention",): 4, ("cross_attention",): 2}


def test_fused_layers_count_as_each_of_their_roles() -> None:
    by_leaf = {site.leaf: site for site in of("linear", sites(FAMILIES["gpt2"][0]()))}
    assert by_leaf["c_attn"].roles == ("q", "k", "v")
    assert by_leaf["c_attn"].transposed
    assert by_leaf["c_attn"].shape == (96, 32)
    by_leaf = {site.leaf: site for site in of("linear", sites(FAMILIES["phi3"][0]()))}
    assert (by_leaf["qkv_proj"].roles, by_leaf["gate_up_proj"].roles) == (("q", "k", "v"), ("gate", "up"))


def test_norms_and_biases_are_told_apart_from_weights() -> None:
    roles = {site.name: site.roles for site in of("parameter", sites(FAMILIES["bert"][0]()))}
    assert roles["bert.encoder.layer.0.attention.self.query.bias"] == ("q", "bias")
    assert roles["bert.encoder.layer.0.output.LayerNorm.weight"] == ("norm",)
    assert roles["bert.encoder.layer.0.output.LayerNorm.bias"] == ("norm", "bias")
    assert roles["bert.embeddings.word_embeddings.weight"] == ("embed",)


def test_our_decoder_has_the_sites_of_transformers() -> None:
    for kind in ("llama", "llama tied", "qwen2", "qwen3"):
        assert set(sites(decoder_family.ours(kind))) == set(sites(decoder_family.theirs(kind)))


def test_a_module_of_ones_own_shows_linears_without_roles() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6, bias=False), nn.Sequential(nn.ReLU(), nn.Linear(6, 3)))
    found = sites(model)
    assert [(site.kind, site.name, site.shape, site.roles) for site in found] == [
        ("embedding", "0", (7, 4), ()),
        ("linear", "1", (6, 4), ()),
        ("linear", "2.1", (3, 6), ()),
        ("parameter", "0.weight", (7, 4), ()),
        ("parameter", "1.weight", (6, 4), ()),
        ("parameter", "2.1.weight", (3, 6), ()),
        ("parameter", "2.1.bias", (3,), ("bias",)),
    ]
    assert [site.layer for site in of("linear", found)] == [1, 2]
    assert sites(nn.Linear(2, 3))[0].name == ""


def test_sites_are_the_same_while_adapters_are_attached() -> None:
    model = CausalLM(decoder_family.config("llama tied"))
    before = sites(model)
    attention = model.model.layers[1].self_attn
    attention.q_proj = AroundModule(attention.q_proj, nn.Linear(32, 32))
    attention.o_proj = AfterModule(AroundModule(attention.o_proj, nn.Linear(32, 32)), nn.Linear(32, 32))
    assert sites(model) == before


def test_half_precision_is_said_of_each_site() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2).bfloat16(), "b": nn.Linear(2, 2)})
    assert {site.name: site.dtype for site in of("linear", sites(model))} == {"a": "bfloat16", "b": "float32"}


def test_the_context_limit_is_what_positions_allow() -> None:
    assert context_limit(CausalLM(decoder_family.config("llama"))) == 64
    assert context_limit(FAMILIES["bert"][0]()) == 64
    assert context_limit(FAMILIES["roberta"][0]()) == 62
    assert context_limit(FAMILIES["gpt2"][0]()) == 1024
    assert context_limit(FAMILIES["t5"][0]()) is None
    assert context_limit(FAMILIES["bloom"][0]()) is None
    assert context_limit(nn.Linear(2, 2)) is None
