"""Added tokens and trained rows of embeddings: what is trained, saved, said in the plan, and needed of a fresh base."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import lorica
from lorica import adapter, budget
from lorica.errors import AdapterError, ModelError, TargetError
from lorica.methods import LoRA
from tiny_bases import LLAMA as TINY

WORDS = ("<sql>", "</sql>")
IDS = torch.tensor([[3, 257, 9, 258, 4, 11]])
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(["<end>", *alphabet])}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    words.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A tiny Llama of 257 tokens, tied and untied."""
    found = {}
    for tied in (True, False):
        torch.manual_seed(1)
        config = hf.LlamaConfig(
            vocab_size=257,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            eos_token_id=0,
            bos_token_id=None,
        )
        found[tied] = tmp_path_factory.mktemp("tied" if tied else "untied")
        hf.LlamaForCausalLM(config).save_pretrained(found[tied])
        tokenizer().save_pretrained(found[tied])
    return found


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request, folders) -> Path:
    return folders[request.param]


def own(folder):
    return lorica.load_base(folder)


def foreign(folder):
    """The same base as transformers runs it."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    model.tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def learn(attached, ids=IDS, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(attached.parameters(), lr=1e-2)
    for _ in range(steps):
        attached(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("load", [own, foreign])
def test_new_rows_are_the_mean_and_the_same_whoever_adds_them(folder, load):
    model, again = load(folder), load(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = logits(model, IDS % 257)
    assert lorica.add_tokens(model, WORDS) == (257, 258)
    lorica.add_tokens(again, WORDS)
    assert torch.equal(logits(model), logits(again))
    for name in (EMBEDDING, HEAD):
        matrix = model.state_dict()[name]
        assert torch.equal(matrix[:257], before[name])
        assert torch.allclose(matrix[257:], before[name].mean(0).expand(2, -1), rtol=0, atol=1e-7)
    assert torch.equal(logits(model, IDS % 257)[..., :257], expected)
    assert model.config.vocab_size == 259
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == model.config.tie_word_embeddings
    assert model.tokenizer.convert_tokens_to_ids(list(WORDS)) == [257, 258]


def test_own_decoder_and_transformers_add_the_same_rows(folder):
    ours, theirs = own(folder), foreign(folder)
    for model in (ours, theirs):
        lorica.add_tokens(model, WORDS)
    assert all(torch.equal(ours.state_dict()[name], theirs.state_dict()[name]) for name in (EMBEDDING, HEAD))


def test_a_token_that_is_there_keeps_its_id_and_adds_no_row(folder):
    model = own(folder)
    assert lorica.add_tokens(model, "a") == (model.tokenizer.get_vocab()["a"],)
    assert model.config.vocab_size == 257
    assert not getattr(model, "added_tokens", ())


@pytest.mark.parametrize(
    ("words", "told"),
    [([], "none of them empty"), (["x", ""], "none of them empty"), (["<a>", "<a>"], "'<a>' is named twice")],
)
def test_what_cannot_be_added_is_said_in_one_line(folders, words, told):
    with pytest.raises(ModelError, match=told):
        lorica.add_tokens(own(folders[True]), words)


def test_tokens_are_added_before_an_adapter_and_with_a_tokenizer(folders):
    model = own(folders[True])
    attached = lorica.attach(model, LoRA(r=2))
    with pytest.raises(ModelError, match=r"detach\(\) it, add the tokens, then attach"):
        lorica.add_tokens(model, WORDS)
    attached.detach()
    model.tokenizer = None
    with pytest.raises(ModelError, match="brings no tokenizer"):
        lorica.add_tokens(model, WORDS)


@pytest.mark.parametrize("load", [own, foreign])
def test_trained_rows_start_as_the_base_and_they_alone_move(folder, load):
    model = load(folder)
    tokens = lorica.add_tokens(model, WORDS)
    before, start = {n: p.detach().clone() for n, p in model.named_parameters()}, logits(model)
    attached = lorica.attach(model, LoRA(r=2, target_modules="minimal", trainable_token_indices=tokens))
    assert torch.equal(logits(model), start)
    assert {key: tuple(value.shape) for key, value in attached.state().items() if "token" in key} == {
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": (2, 32)
    }
    learn(attached)
    assert min(attached.update_norms().values()) > 0
    now = model.model.embed_tokens.weight.detach()
    moved = (now != before[EMBEDDING]).any(1).nonzero().flatten().tolist()
    assert moved == list(tokens)
    head = (model.lm_head.weight.detach() != before.get(HEAD, before[EMBEDDING])).any(1).nonzero().flatten().tolist()
    assert head == (list(tokens) if model.config.tie_word_embeddings else [])
    attached.detach()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(logits(model), start)


def test_an_untied_head_is_trained_when_named_and_the_plan_says_when_not(folders):
    model = own(folders[False])
    tokens = lorica.add_tokens(model, WORDS)
    alone = lorica.plan(model, LoRA(r=2, trainable_token_indices=tokens)).plan
    assert "lm_head is not tied: its rows for these tokens stay as they are" in str(alone)
    assert "2 rows" in str(alone)
    both = LoRA(r=2, trainable_token_indices={"embed_tokens": tokens, "lm_head": tokens})
    attached = lorica.attach(model, both)
    assert "not tied" not in str(attached.plan)
    learn(attached)
    assert attached.update_norms()[HEAD] > 0


def test_the_plan_says_whether_rows_or_the_whole_embedding_are_trained(folders):
    model = own(folders[False])
    rows = lorica.plan(model, LoRA(r=2, target_modules="minimal", trainable_token_indices=(5, 9))).plan
    whole = lorica.plan(model, LoRA(r=2, target_modules="minimal", modules_to_save=("embed_tokens",))).plan
    assert "the named rows alone are trained and saved" in str(rows)
    assert f"{257 * 32:,}" in str(whole)
    assert whole.trainable_parameters - rows.trainable_parameters == (257 - 2) * 32
    assert rows.total_parameters == whole.total_parameters


def test_the_forecast_counts_the_matrix_that_is_put_together_in_each_pass(folders):
    model = own(folders[False])
    place, work = budget.machine(memory=1e9), budget.Workload()
    methods = [LoRA(r=2), LoRA(r=2, trainable_token_indices=(5, 9))]
    plain, rows = (
        budget.forecast(adapter.plan(model, method), work, place, decoder=True).memory.buffers for method in methods
    )
    assert rows - plain == 2 * 257 * 32 * 4


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"trainable_token_indices": (5, 300)}, r"has 257 rows and none for 300; add the tokens .*lorica\.add_tokens"),
        ({"trainable_token_indices": (5, 5)}, "5 is named twice"),
        ({"trainable_token_indices": {"embed_token": (5,)}}, "matches no embedding; did you mean 'embed_tokens'"),
        ({"trainable_token_indices": (5,), "modules_to_save": ("embed_tokens",)}, "trains all of its rows already"),
        ({"trainable_token_indices": (5,), "target_modules": ["embed_tokens"]}, "choose one of the two"),
    ],
    ids=["beyond", "twice", "misspelt", "whole as well", "adapted as well"],
)
def test_rows_that_cannot_be_trained_are_said_in_one_line(folders, fields, told):
    with pytest.raises(TargetError, match=told):
        lorica.attach(own(folders[False]), LoRA(r=2, **fields))


def test_a_tied_head_follows_its_embedding_and_cannot_have_other_tokens(folders):
    same = LoRA(r=2, trainable_token_indices={"embed_tokens": (5, 9), "lm_head": (5, 9)})
    assert lorica.attach(own(folders[True]), same).update_norms().keys() >= {EMBEDDING}
    other = LoRA(r=2, trainable_token_indices={"embed_tokens": (5, 9), "lm_head": (5,)})
    with pytest.raises(TargetError, match="tied with the embedding; give both the same tokens"):
        lorica.attach(own(folders[True]), other)


def trained(folder: Path, out: Path, load=own, **fields):
    """An adapter with two added tokens, saved, and what its model answers."""
    model = load(folder)
    tokens = lorica.add_tokens(model, WORDS)
    given = fields or {"trainable_token_indices": tokens}
    attached = lorica.attach(model, LoRA(r=2, alpha=8, target_modules="minimal", **given))
    learn(attached)
    attached.save(out)
    return attached, logits(model)


@pytest.mark.parametrize("load", [own, foreign])
@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ("embed_tokens", "lm_head")}], ids=["rows", "whole"])
def test_a_fresh_base_is_told_its_tokens_and_then_answers_to_the_bit(folders, load, fields, tmp_path):
    folder = folders[bool(not fields)]
    _, expected = trained(folder, tmp_path / "a", load, **fields)
    fresh = load(folder)
    with pytest.raises(AdapterError) as refused:
        lorica.load(fresh, tmp_path / "a")
    assert str(refused.value).endswith("add them first: lorica.add_tokens(model, ['<sql>', '</sql>'])")
    assert "\n" not in str(refused.value)
    lorica.add_tokens(fresh, ["<sql>", "</sql>"])
    lorica.load(fresh, tmp_path / "a")
    assert torch.equal(logits(fresh), expected)


def test_the_file_holds_rows_and_names_the_tokens(folders, tmp_path):
    trained(folders[False], tmp_path / "a")
    held = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert max(tensor.shape[0] for key, tensor in held.items() if "token" in key) == 2
    shown = lorica.inspect(tmp_path / "a")
    assert any(site.name == EMBEDDING and site.note == "2 rows" and site.parameters == 64 for site in shown.sites)


def test_merging_in_memory_gives_a_whole_model_with_its_tokens(folder, tmp_path):
    attached, expected = trained(folder, tmp_path / "a")
    attached.merge().save_pretrained(tmp_path / "merged")
    for merged in (foreign(tmp_path / "merged"), own(tmp_path / "merged")):
        found = logits(merged)
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
        assert merged.tokenizer.convert_tokens_to_ids(list(WORDS)) == [257, 258]


def test_merging_folders_keeps_trained_rows_and_refuses_tokens_that_the_base_lacks(folder, tmp_path):
    model = own(folder)
    attached = lorica.attach(model, LoRA(r=2, target_modules="minimal", trainable_token_indices=(3, 9)))
    learn(attached, IDS % 257)
    attached.save(tmp_path / "old")
    expected = logits(model, IDS % 257)
    lorica.merge(tmp_path / "old", tmp_path / "merged", model=str(folder))
    found = logits(own(tmp_path / "merged"), IDS % 257)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    trained(folder, tmp_path / "new")
    with pytest.raises(AdapterError, match="merge it in memory instead"):
        lorica.merge(tmp_path / "new", tmp_path / "other", model=str(folder))
    assert not (tmp_path / "other").exists()


def test_commands_that_load_the_base_themselves_add_its_tokens(folders, tmp_path):
    attached, _ = trained(folders[True], tmp_path / "a")
    expected = lorica.generate(attached, "<sql>abc", max_tokens=5)
    assert lorica.generate(tmp_path / "a", "<sql>abc", model=str(folders[True]), max_tokens=5) == expected


def test_a_base_in_half_precision_trains_rows_in_float32(folders):
    model = lorica.load_base(folders[True], dtype="bfloat16")
    attached = lorica.attach(model, LoRA(r=2, trainable_token_indices=lorica.add_tokens(model, WORDS)))
    learn(attached)
    assert {p.dtype for p in attached.parameters()} == {torch.float32}
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert min(attached.update_norms().values()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_that_rows_are_put_into_moves_with_the_model(dtype):
    """As it does to another device: W that stayed behind would be looked up with tokens that are elsewhere."""
    attached = adapter.attach(TINY.build(dtype), LoRA(r=2, trainable_token_indices=(1, 2)))
    rows = attached.modules["model.embed_tokens.weight", "instead"]
    assert rows().dtype == dtype
    attached.model.double()
    assert rows().dtype == torch.float64
