"""Our decoder computes what transformers does, and the same packed, padded, cached and apart."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import decoder_family
from decoder_family import KINDS, ours, theirs, tokens
from lorica.errors import ModelError
from lorica.models import attention
from lorica.models.cache import KVCache
from lorica.models.causal_lm import CausalLM
from lorica.models.layout import Layout

EVERY = pytest.mark.parametrize("kind", KINDS)


def rounding(dtype: torch.dtype, layers: int = 3, reduction: int = 40) -> float:
    """Relative to the largest value: eps for each of ~10 operations a layer, sums of `reduction` terms included."""
    return 10 * layers * math.sqrt(reduction) * torch.finfo(dtype).eps


def difference(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


def packed(model: CausalLM, documents: list[Tensor]) -> list[Tensor]:
    layout = Layout.of([len(document) for document in documents])
    logits = model.logits(model.hidden(torch.cat(documents), layout), layout)
    return list(logits.split(layout.documents))


@EVERY
def test_logits_equal_those_of_transformers_to_rounding(kind: str) -> None:
    ids = tokens(3, 13)
    assert difference(ours(kind)(ids).logits, theirs(kind)(ids).logits) < rounding(torch.float32)
    wide = difference(ours(kind, torch.float64)(ids).logits, theirs(kind, torch.float64)(ids).logits)
    # transformers computes norms and the rotation's angles in float32 whatever the weights are
    assert wide < rounding(torch.float32)


@EVERY
def test_rows_padded_on_either_side_equal_transformers_at_real_tokens(kind: str) -> None:
    ids, lengths = tokens(3, 11), torch.tensor([[11], [4], [7]])
    right = (torch.arange(11) < lengths).long()
    for mask in (right, right.flip(1)):
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        wanted = theirs(kind)(ids, attention_mask=mask, position_ids=positions).logits
        found = ours(kind)(ids, attention_mask=mask).logits
        real = mask.bool()
        assert difference(found[real], wanted[real]) < rounding(torch.float32)
        assert found[~real].abs().max() == 0


def test_norms_that_somebody_watches_are_called_and_give_the_same_bits() -> None:
    model, seen = copy.deepcopy(ours("llama", torch.bfloat16)), []
    ids = tokens(2, 9)
    wanted = model(ids).logits
    norms = ("input_layernorm", "post_attention_layernorm")
    hooked = [getattr(block, name) for block in model.model.layers for name in norms]
    for norm in hooked:
        norm.register_forward_hook(lambda *given: seen.append(given[0]))
    assert torch.equal(model(ids).logits, wanted)
    assert seen == hooked


@EVERY
def test_packed_documents_equal_each_document_alone(kind: str) -> None:
    model = ours(kind, torch.float64)
    documents = [tokens(length, seed=length) for length in (1, 9, 3, 14)]
    for together, document in zip(packed(model, documents), documents, strict=True):
        assert difference(together, packed(model, [document])[0]) < 1e-13


@EVERY
def test_a_document_that_fills_up_the_matrix_changes_no_other(kind: str) -> None:
    model = ours(kind, torch.float64)
    flat, layout = torch.cat([tokens(9), tokens(4, seed=1)]), Layout.of([9, 4]).with_noise(3, 5, [7, 2])
    filled = layout.filled(24)
    assert filled.documents == (9, 4, 11)
    assert filled.noise is not None
    assert filled.noise.rows[:13].tolist() == [7] * 9 + [2] * 4
    found = model.model(torch.cat([flat, flat.new_zeros(11)]), filled)[:13]
    assert difference(found, model.model(flat, layout)) < 1e-13


@EVERY
def test_states_of_some_places_are_those_of_the_whole_pass(kind: str) -> None:
    model = ours(kind, torch.float64)
    flat, layout, places = torch.cat([tokens(9), tokens(4, seed=1)]), Layout.of([9, 4]), torch.tensor([2, 8, 9, 12])
    assert difference(model.hidden(flat, layout, places), model.hidden(flat, layout)[places]) < 1e-13
    in_bfloat16 = ours(kind, torch.bfloat16)
    found = in_bfloat16.hidden(flat, layout, places)
    assert found.shape == (4, in_bfloat16.shape.d)
    assert difference(found, model.hidden(flat, layout, places)) < rounding(torch.bfloat16)


@EVERY
def test_reading_in_pieces_through_the_cache_equals_reading_at_once(kind: str) -> None:
    model = ours(kind, torch.float64)
    documents = [tokens(length, seed=length) for length in (12, 7, 10)]
    cache, read = KVCache(3), [torch.zeros(0, decoder_family.VOCABULARY, dtype=torch.float64) for _ in documents]
    for start, stop in ((0, 3), (3, 4), (4, 5), (5, 7)):
        layout = Layout.of([stop - start] * 3, cache=cache)
        flat = torch.cat([document[start:stop] for document in documents])
        pieces = model.logits(model.hidden(flat, layout), layout).split(layout.documents)
        read = [torch.cat(pair) for pair in zip(read, pieces, strict=True)]
    for found, document in zip(read, documents, strict=True):
        assert difference(found, packed(model, [document[:7]])[0]) < 1e-13


def test_a_document_that_leaves_the_cache_changes_nothing_for_those_that_stay() -> None:
    model = ours("mistral sliding", torch.float64)
    documents = [tokens(length, seed=length) for length in (12, 70, 9)]
    cache = KVCache(3)
    model.hidden(torch.cat([document[:-1] for document in documents]), Layout.of([11, 69, 8], cache=cache))
    cache = cache.keep([2, 1])
    assert cache.lengths == [8, 69]
    layout = Layout.of([1, 1], cache=cache)
    found = model.logits(model.hidden(torch.stack([documents[2][-1], documents[1][-1]]), layout), layout)
    for row, document in zip(found, (documents[2], documents[1]), strict=True):
        assert difference(row, packed(model, [document])[0][-1]) < 1e-13
    assert KVCache(2).keep([]).lengths == []


def test_documents_of_like_length_share_a_rectangle_where_that_saves_more_than_a_group_costs() -> None:
    assert attention.groups_of([40] * 20 + [130] * 12) == [20, 12]
    assert attention.groups_of([110, 140]) == [2]
    assert attention.groups_of([40] * 20 + [130] * 12 + [100]) == [20, 13]
    assert attention.groups_of([16, 32] * 100) == [200]
    many = sorted(2000 + 40 * n for n in range(60))
    assert len(attention.groups_of(many)) > 10


@pytest.mark.parametrize("kind", ["llama", "mistral sliding"])
def test_documents_in_groups_equal_documents_in_one_rectangle(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lengths = ours(kind, torch.float64), [9, 16, 17, 60, 33, 100, 100]
    documents = [tokens(length, seed=length) for length in lengths]
    monkeypatch.setattr(attention, "GROUP_SCORES", 0)
    assert len(attention.groups_of(lengths)) > 1
    found = packed(model, documents)
    monkeypatch.setattr(attention, "MOST_RUNS", 0)
    assert len(attention.groups_of(lengths)) == 1
    assert max(map(difference, found, packed(model, documents))) < 1e-13


@pytest.mark.parametrize("kind", ["llama", "llama without sharing", "mistral sliding", "qwen2 sliding in some layers"])
def test_long_documents_equal_their_passes_alone(kind: str) -> None:
    model = ours(kind, torch.float64)
    documents = [tokens(length, seed=length) for length in (384, 401)]
    for found, document in zip(packed(model, documents), documents, strict=True):
        assert difference(found, packed(model, [document])[0]) < 1e-13


def test_changing_one_packed_document_moves_no_other() -> None:
    model = ours("llama", torch.float64)
    before = packed(model, [tokens(5), tokens(6, seed=1), tokens(4, seed=2)])
    after = packed(model, [tokens(5), tokens(6, seed=9), tokens(4, seed=2)])
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert difference(after[1], before[1]) > 0.1


@pytest.mark.parametrize("heads_kv", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 3])
def test_the_matmul_attention_of_bfloat16_equals_torchs_own(heads_kv: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 17, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, heads_kv, 17, 8, generator=generator, dtype=torch.float64).unbind()
    behind = torch.arange(17)[:, None] - torch.arange(17)
    mask = ((behind >= 0) & (behind < (window or 17)))[None, None]
    wanted = attention.sdpa(q, k, v, mask)
    assert difference(attention._by_matmul(q, k, v, mask), wanted) < 1e-14
    half = attention._by_matmul(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert half.dtype == torch.bfloat16
    # inputs, scores, softmax and output are each rounded to 8 bits; scores of 8 terms reach about 3
    assert difference(half, wanted) < 12 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("kind", ["llama", "llama tied", "mistral sliding", "qwen2", "qwen3"])
def test_gradients_equal_those_of_transformers(kind: str) -> None:
    ids = tokens(2, 9)
    pair = [copy.deepcopy(model).requires_grad_(True) for model in (ours(kind), theirs(kind))]
    for model in pair:
        model(ids, labels=ids).loss.backward()
    found, wanted = ({name: parameter.grad for name, parameter in model.named_parameters()} for model in pair)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        if not name.endswith("k_proj.bias"):  # zero by mathematics, so rounding is all it has
            assert difference(found[name], gradient) < 10 * rounding(torch.float32), name


@pytest.mark.parametrize("kind", ["llama", "mistral sliding", "qwen3"])
def test_bfloat16_is_no_further_from_the_truth_than_transformers_is(kind: str) -> None:
    ids = tokens(2, 9)
    their_half, our_half = copy.deepcopy(theirs(kind)).bfloat16(), copy.deepcopy(ours(kind)).bfloat16()
    truth = copy.deepcopy(our_half).double()(ids).logits
    found = our_half(ids).logits
    assert found.dtype == torch.bfloat16
    error = difference(found, truth)
    assert error < 2 * difference(their_half(ids).logits, truth)
    assert error > torch.finfo(torch.bfloat16).eps / 8


def test_labels_are_shifted_and_their_mean_taken_as_in_transformers() -> None:
    ids, mask = tokens(3, 9), (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :5] = -100
    wanted = theirs("llama")(ids, attention_mask=mask, labels=labels).loss
    found = ours("llama")(ids, attention_mask=mask, labels=labels)
    assert abs(float(found.loss) / float(wanted) - 1) < rounding(torch.float32)
    summed = ours("llama")(ids, attention_mask=mask, labels=labels, num_items_in_batch=7).loss
    learned = int((labels[:, 1:] != -100).sum())
    assert abs(float(summed) * 7 / (float(wanted) * learned) - 1) < rounding(torch.float32)


def test_a_layout_of_one_pass_names_its_documents() -> None:
    layout = replace(Layout.of([2, 3]), route=torch.tensor([0, 0, 1, 1, 1]))
    assert layout.document_of.tolist() == [0, 0, 1, 1, 1]
    assert layout.offsets.tolist() == [0, 1, 0, 1, 2]
    assert layout.last.tolist() == [1, 4]
    longer, places = layout.lengthened(2)
    assert longer.documents == (4, 5)
    assert places.tolist() == [2, 3, 6, 7, 8]
    assert longer.route is not None
    assert longer.route.tolist() == [0] * 4 + [1] * 5


def test_what_a_decoder_does_not_take_is_named_whatever_it_holds() -> None:
    model, ids = ours("llama", torch.float64), tokens(2, 5)
    for value in (torch.zeros(1), torch.zeros_like(ids)):
        with pytest.raises(ModelError, match="not token_type_ids"):
            model(ids, token_type_ids=value)
    assert model(ids, use_cache=False, output_attentions=None, logits_to_keep=0).logits.shape[:2] == ids.shape
