"""Methods that are no weight updates: positions, masks and caches, what is folded and refused, and that they learn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.adapter import Attached, Bank, attach, inspect, load, plan
from lorica.errors import AdapterError, ModelError, TargetError
from lorica.methods import BitFit, Bottleneck, Full, LoRA, Method, Norm, Prefix, Prompt, PTuning, PTuningV2
from lorica.models import sites
from lorica.models.cache import KVCache
from lorica.models.layout import Layout
from lorica.site import Site
from tiny_bases import BART, BART_SHAPE, BERT, GPT2, LLAMA, OPT, T5, VIT, Base, stir

P = 4
WORDS = torch.tensor([[7, 31, 12, 50]])
CLOSE = {"rtol": 0.0, "atol": 1e-10}
"""Double precision through two blocks: some thousand roundings of 1e-16, with room."""
VIRTUAL = [
    Prefix(length=P, hidden=6),
    PTuningV2(length=P),
    Prompt(length=P),
    PTuning(length=P, hidden=5, encoder="lstm"),
]
NAMES = [method.kind for method in VIRTUAL]


def stirred(base: Base, method: Any, dtype: torch.dtype = torch.float64) -> Attached:
    attached = attach(base.build(dtype), method)
    stir(attached.named_parameters())
    return attached


def adapted(base: Base, method: Any) -> Any:
    return stirred(base, method).model


def read_words(base: Base) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (P, K, E) of every layer of the base when it has read WORDS."""
    model: Any = base.build()
    with torch.no_grad():
        if base is LLAMA:
            cache = KVCache(1)
            model.hidden(WORDS[0], Layout.of([P], cache=cache))
            return [(cache._keys[layer][0, :P], cache._values[layer][0, :P]) for layer in range(2)]
        layers = model(WORDS, use_cache=True).past_key_values.layers
        return [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in layers]


@pytest.mark.parametrize("base", [LLAMA, GPT2, OPT, BART], ids=str)
@torch.no_grad()
def test_a_prefix_of_what_words_leave_in_the_cache_acts_as_those_words(base: Base):
    """Positions, masks and padding at once: the output is the base's on the words and the row."""
    model = base.build()
    attached = attach(model, PTuningV2(length=P))
    among_words = [planned for planned in attached.plan.edits if "attention" in planned.site.roles]
    for planned, (keys, values) in zip(among_words, read_words(base), strict=True):
        module: Any = attached.modules[planned.key]
        module.keys.copy_(keys)
        module.values.copy_(values)
    given = base.inputs()
    rows = len(given["input_ids"])
    longer = {
        "input_ids": torch.cat([WORDS.expand(rows, -1), given["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones(rows, P).long(), given["attention_mask"]], 1),
    }
    expected = base.read(base.build()(**longer))[:, P:] * given["attention_mask"][..., None]
    torch.testing.assert_close(base.output(model), expected, **CLOSE)


@pytest.mark.parametrize("base", [OPT, BART], ids=str)
@torch.no_grad()
def test_positions_that_a_table_counts_by_itself_move_with_the_cache_and_within_the_table(base: Base):
    model = adapted(base, PTuningV2(length=P))
    ids, more = base.inputs()["input_ids"][:2, :5], {"pad_token_id": 0, "eos_token_id": None, "do_sample": False}
    written = [
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, use_cache=cached, **more)
        for cached in (True, False)
    ]
    assert torch.equal(*written)
    with pytest.raises(ModelError, match="prefix: with it the row reaches position 24, and the base has 24"):
        model(torch.ones(1, 25 - P, dtype=torch.long))


@torch.no_grad()
def test_both_stacks_of_an_encoder_decoder_of_barts_kind_move_their_positions():
    from transformers import BartConfig, BartForConditionalGeneration

    model: Any = BartForConditionalGeneration(BartConfig(**BART_SHAPE)).eval()
    tables = {stack: getattr(model.model, stack).embed_positions for stack in ("encoder", "decoder")}
    found: dict[str, Tensor] = {}
    for stack, table in tables.items():
        table.register_forward_hook(lambda module, args, out, stack=stack: found.update({stack: out}))
    attach(model, PTuningV2(length=P))
    model(input_ids=WORDS, decoder_input_ids=WORDS[:, :3])
    for stack, length in (("encoder", WORDS.shape[1]), ("decoder", 3)):
        rows = tables[stack].weight[2 + P :][:length]
        assert torch.equal(found[stack].expand(1, -1, -1)[0], rows), stack


def test_the_mlp_of_a_prefix_serves_layers_on_other_devices():
    """As where a base is spread over several: here the second layer lies on none."""
    attached = attach(LLAMA.build(), Prefix(length=P, hidden=6))
    first, second = (attached.modules[planned.key] for planned in attached.plan.edits)
    second.to("meta")
    assert [part.device.type for part in (*first(), *second())] == ["cpu", "cpu", "meta", "meta"]


@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=str)
@torch.no_grad()
def test_a_prompt_that_begins_as_words_acts_as_those_words_before_it_is_trained(base: Base):
    model: Any = base.build()
    attach(model, Prompt(length=P, init_tokens=tuple(WORDS[0].tolist())))
    ids = base.inputs()["input_ids"]
    expected = base.build()(torch.cat([WORDS.expand(len(ids), -1), ids], 1)).logits[:, P:]
    torch.testing.assert_close(model(ids).logits, expected, **CLOSE)


@pytest.mark.parametrize(
    "method", [*VIRTUAL, [LoRA(r=2), VIRTUAL[0]], Bottleneck(size=3)], ids=[*NAMES, "lora+prefix", "after"]
)
@torch.no_grad()
def test_packed_separate_and_cached_documents_are_the_same(method: Any):
    model = adapted(LLAMA, method)
    generator = torch.Generator().manual_seed(2)
    documents = [torch.randint(3, 60, (count,), generator=generator) for count in (5, 1, 8)]
    separate = [model.hidden(tokens, Layout.of([len(tokens)])) for tokens in documents]
    packed = model.hidden(torch.cat(documents), Layout.of([5, 1, 8]))
    torch.testing.assert_close(packed, torch.cat(separate), **CLOSE)
    cache = KVCache(3)
    first = model.hidden(torch.cat([d[:3] for d in documents]), Layout.of([3, 1, 3], cache=cache))
    second = model.hidden(torch.cat([documents[0][3:], documents[2][3:]]), Layout.of([2, 0, 5], cache=cache))
    cached = torch.cat([first[:3], second[:2], first[3:4], first[4:], second[2:]])
    torch.testing.assert_close(cached, torch.cat(separate), **CLOSE)


@pytest.mark.parametrize("method", VIRTUAL, ids=NAMES)
@torch.no_grad()
def test_generation_with_the_cache_writes_what_reading_everything_again_would(method: Any):
    model = adapted(LLAMA, method)
    ids = LLAMA.inputs()["input_ids"][:2, :5]
    written = model.generate(ids, max_new_tokens=6, eos_token_id=[])
    again = ids
    for _ in range(6):
        again = torch.cat([again, model(again).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, again)


@pytest.mark.parametrize(("base", "method"), [(GPT2, VIRTUAL[0]), (T5, VIRTUAL[0]), (GPT2, VIRTUAL[2])], ids=str)
@torch.no_grad()
def test_transformers_generates_the_same_with_and_without_its_cache(base: Base, method: Method):
    model = adapted(base, method)
    given = {name: base.inputs()[name][:2, :5] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(**given, use_cache=True, **options)
    assert torch.equal(cached, model.generate(**given, use_cache=False, **options))


@pytest.mark.parametrize(
    "method", [Prefix(length=P, hidden=6), PTuning(length=P), VIRTUAL[3]], ids=["prefix", "mlp", "lstm"]
)
@torch.no_grad()
def test_what_helps_to_train_is_folded_to_the_bit_and_gone_from_the_file(method: Any, tmp_path: Path):
    attached = stirred(LLAMA, method, torch.float32)
    expected = LLAMA.output(attached.model)
    attached.save(tmp_path / "a")
    again = load(LLAMA.build(torch.float32), tmp_path / "a")
    assert torch.equal(LLAMA.output(again.model), expected)
    free = P * 32 if isinstance(method, PTuning) else 2 * 2 * P * 16
    assert again.trainable_parameters == free < attached.trainable_parameters
    assert inspect(tmp_path / "a").trained_parameters == free
    again.save(tmp_path / "b")
    assert (tmp_path / "b/adapter_model.safetensors").read_bytes() == (
        tmp_path / "a/adapter_model.safetensors"
    ).read_bytes()


def test_layers_share_one_mlp_whatever_the_plan_is_used_for():
    """A plan that is attached twice has two."""
    planned = plan(LLAMA.build(), Prefix(length=P, hidden=6))
    first, second = attach(LLAMA.build(), planned), attach(LLAMA.build(), planned)
    for attached in (first, second):
        one, other = attached.modules.values()
        assert one._encoder[0] is other._encoder[0]
        assert "encoder" in one._modules
        assert "encoder" not in other._modules
    owned = {id(parameter) for parameter in first.parameters()}
    assert owned.isdisjoint(id(parameter) for parameter in second.parameters())


def test_a_row_that_a_prefix_makes_too_long_for_the_table_of_positions_is_an_error():
    model = adapted(GPT2, PTuningV2(length=60))
    with pytest.raises(ModelError, match="prefix: with it the row reaches position 68, and the base has 64; shorten"):
        GPT2.output(model)


REFUSED: list[tuple[Base, Any, str]] = [
    (T5, BitFit(), "bitfit: this base has no biases, so nothing would be trained; use norm, or lora"),
    (BERT, BitFit(target_modules=("qery",)), "'qery' matches no module with a bias; did you mean 'query'"),
    (BERT, Norm(target_modules=("LayerNrom",)), "'LayerNrom' matches no norm of this base; did you mean 'LayerNorm'"),
    (VIT, Prompt(), "prompt: this base reads no tokens; use prefix"),
    (LLAMA, Prompt(init_tokens=(61,)), "init_tokens: 61 is beyond model.embed_tokens, whose rows are 0 to 60"),
    (BERT, Bottleneck(modules_to_save=("clasifier",)), "'clasifier' matches no module .*did you mean 'classifier'"),
    (
        LLAMA,
        [Prefix(), PTuningV2()],
        "self_attn.*: keys_values_before is asked for by prefix and p-tuning-v2; leave it",
    ),
    (LLAMA, [Prompt(), PTuning()], "embed_tokens: tokens_before is asked for by prompt and p-tuning; leave it to one"),
    (LLAMA, [Bottleneck(), Bottleneck(placement="pfeiffer")], "after is asked for by bottleneck and bottleneck; leave"),
    (LLAMA, [LoRA(bias="all"), BitFit()], "instead is asked for by lora and bitfit; leave it to one of them"),
    (LLAMA, [LoRA(), Full()], "trained whole and adapted beside it as well; choose one of the two"),
]


@pytest.mark.parametrize(("base", "method", "told"), REFUSED, ids=[f"{n}-{case[0]}" for n, case in enumerate(REFUSED)])
def test_what_has_no_meaning_is_an_error_with_its_remedy(base: Base, method: Any, told: str):
    with pytest.raises(TargetError, match=told):
        plan(base.build(), method)


def test_a_base_whose_sublayers_are_unknown_takes_no_bottleneck():
    with pytest.raises(TargetError, match="bottleneck: no sublayer of this base is known to be"):
        plan(nn.Sequential(nn.Linear(3, 3)), Bottleneck())


def test_an_untrained_bottleneck_is_refused_as_without_effect(tmp_path: Path):
    attached = attach(LLAMA.build(), Bottleneck(size=3))
    attached.save(tmp_path / "a")
    with pytest.raises(AdapterError, match="this adapter changes nothing"):
        load(LLAMA.build(), tmp_path / "a")
    load(LLAMA.build(), tmp_path / "a", untrained=True)


def test_a_bank_says_that_rows_of_one_batch_cannot_choose_a_prefix(tmp_path: Path):
    stirred(LLAMA, Prefix(length=P, hidden=6), torch.float32).save(tmp_path / "a")
    with pytest.raises(
        AdapterError, match="bank: 'one' holds keys_values_before, which rows of one batch cannot choose"
    ):
        Bank(LLAMA.build(torch.float32)).add("one", tmp_path / "a")


@pytest.mark.parametrize("method", [Prefix(), Prompt(), Bottleneck()], ids=lambda method: method.kind)
def test_what_is_no_weight_cannot_be_merged(method: Method):
    attached = attach(LLAMA.build(), method)
    with pytest.raises(AdapterError, match=f"{method.kind} cannot be merged"):
        attached.merge()


def test_a_head_is_trained_beside_any_of_them_and_saved_with_it(tmp_path: Path):
    for method in (Bottleneck(size=3), BitFit(), Norm(), PTuningV2(length=P), Prompt(length=P)):
        whole = method.model_copy(update={"modules_to_save": ("classifier",)})
        attached = attach(BERT.build(torch.float32), whole)
        biases = 5 if isinstance(method, BitFit) else 0  # the classifier's own, which BitFit trains anyway
        assert attached.trainable_parameters == plan(BERT.build(), method).trainable_parameters + 5 * 32 + 5 - biases
        stir(attached.named_parameters())
        attached.save(tmp_path / method.kind)
        again = load(BERT.build(torch.float32), tmp_path / method.kind)
        with torch.no_grad():
            assert torch.equal(BERT.output(attached.model), BERT.output(again.model)), method.kind


LEARNING: list[tuple[Any, float]] = [
    (Bottleneck(size=4), 1e-2),
    (BitFit(), 3e-2),
    (Norm(), 3e-2),
    (Prefix(length=P, hidden=16), 1e-2),
    (PTuningV2(length=P), 0.1),
    (Prompt(length=P), 0.1),
    (PTuning(length=P), 1e-2),
    (PTuning(length=P, encoder="lstm"), 1e-2),
    ([LoRA(r=2), PTuningV2(length=P)], 1e-2),
    ([LoRA(r=2), Bottleneck(size=4)], 1e-2),
    ([LoRA(r=2), BitFit()], 1e-2),
]


@pytest.mark.parametrize(("method", "rate"), LEARNING, ids=[str(n) for n in range(len(LEARNING))])
def test_the_loss_falls_on_a_tiny_llama(method: Any, rate: float):
    """Every row is to end in the same token: what each of them can teach a base that knows nothing."""
    model: Any = LLAMA.build(torch.float32)
    attached = attach(model, method)
    ids = LLAMA.inputs()["input_ids"]
    labels = torch.where(torch.arange(ids.shape[1]) > 0, 17, -100).expand_as(ids)
    optimizer = torch.optim.Adam(attached.parameters(), lr=rate)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses


COUNTS: list[tuple[Any, int, str]] = [
    (Bottleneck(), 33_820_672, "bottleneck"),
    (Bottleneck(placement="pfeiffer"), 16_910_336, "bottleneck"),
    (Prefix(), 136_618_496, "prefix"),
    (Prefix(projection=False), 2_621_440, "prefix"),
    (PTuningV2(), 2_621_440, "p-tuning-v2"),
    (Prompt(), 81_920, "prompt"),
    (PTuning(), 50_425_856, "p-tuning"),
    (PTuning(encoder="none"), 81_920, "p-tuning"),
    (Norm(), 266_240, "norm"),
]


def test_the_counts_that_the_pages_print_are_the_plans():
    """Llama-2-7B: 32 layers, 32 heads of 128, width 4096."""
    heads = replace(next(s for s in sites(LLAMA.build()) if s.kind == "attention"), shape=(32, 128))
    found = [replace(heads, name=f"{n}.attn", layer=n) for n in range(32)]
    found += [Site(name="embed", kind="tokens", shape=(32000, 4096))]
    found += [
        Site(name=f"{n}.{role}", kind="sublayer", roles=(role,), shape=(4096,))
        for n in range(32)
        for role in ("attention", "mlp")
    ]
    found += [Site(name=f"norm{n}.weight", kind="parameter", roles=("norm",), shape=(4096,)) for n in range(65)]
    pages = Path(__file__).parents[2] / "docs/methods"
    for method, count, page in COUNTS:
        assert plan(found, method).trainable_parameters == count, method
        assert f"{count:,}" in (pages / f"{page}.md").read_text(), (page, count)
