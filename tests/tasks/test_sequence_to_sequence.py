"""Sequence to sequence: transformers' own loss, micro-batches, that it learns, what it answers, and its measures."""

import random

import pytest
import torch
from torch import nn

import lorica
from lorica.api.lessons import from_anything
from lorica.data import DataConfig
from lorica.errors import DataError, ModelError, RecipeError, RequestError
from lorica.tasks import require_task
from lorica.tasks.seq2seq import scores_of
from micro_batches import same_however_cut
from tiny_bases import stir

CPU = torch.device("cpu")
WORDS = [f"w{n}" for n in range(8)]
ROWS = [
    {"source": "w1 w2 w3", "target": "w3"},
    {"source": "w4", "target": "w1 w2 w5 w6"},
    {"source": "w5 w5", "target": "w7 w1"},
]


def base(kind, folder):
    """A tiny random encoder-decoder with a vocabulary of words."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "<s>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        config = hf.T5Config(vocab_size=len(words), **sizes, decoder_start_token_id=0, tie_word_embeddings=False)
        model = hf.T5ForConditionalGeneration(config)
    else:
        sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 32}
        ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "decoder_start_token_id": 1}
        config = hf.BartConfig(vocab_size=len(words), **sizes, **heads, **ids, forced_eos_token_id=None)
        model = hf.BartForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                std = parameter[0].numel() ** -0.5
                parameter.normal_(0.0, std * 8**-0.5 if name.endswith("Attention.q.weight") else std)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["t5", "bart"])
def folder(request, tmp_path_factory):
    return base(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return base("t5", tmp_path_factory.mktemp("t5"))


def taught(folder, rows, task="seq2seq", **options):
    model = lorica.load_base(folder, dtype="float64")
    return model, from_anything(model, rows, DataConfig(train="rows", **options), require_task(task))


def test_the_loss_is_the_one_that_transformers_makes_of_labels(folder):
    task = require_task("seq2seq")
    model, data = taught(folder, ROWS)
    total = torch.zeros((), dtype=torch.float64)
    for example in data.examples:
        labels = torch.from_numpy(example.target)[None]
        ids = torch.from_numpy(example.input_ids)[None].long()
        total += model(input_ids=ids, labels=labels).loss.detach() * labels.numel()
    batch = task.batch(data.examples, device=CPU)
    assert task.units(batch) == data.label_tokens == 2 + 5 + 3
    # T5's norms take their mean in float32 whatever the weights.
    torch.testing.assert_close(task.loss(model, batch).double(), total, rtol=1e-6, atol=0)
    metrics = task.evaluate(model, data, micro_batch_tokens=5)
    assert metrics["loss"] == pytest.approx(total.item() / 10, rel=1e-6)


def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(folder):
    task = require_task("seq2seq")
    model, data = taught(folder, ROWS)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "T5LayerNorm":
                setattr(parent, name, nn.RMSNorm(child.weight.numel(), child.variance_epsilon).double())
    model.requires_grad_(False)
    attached = lorica.attach(model, lorica.LoRA(r=3, alpha=8, dropout=0.3, target_modules="all-linear"), seed=1)
    stir(attached.named_parameters())
    whole = same_however_cut(attached, task, data.examples)
    assert whole.keys() == dict(attached.named_parameters()).keys()


def test_a_row_is_as_long_as_what_a_batch_holds_of_it(folder):
    """Sources and targets end with </s>."""
    task = require_task("seq2seq")
    _, data = taught(folder, ROWS)
    assert data.lengths.tolist() == [4 + 2, 2 + 5, 3 + 3]
    mask = task.batch(data.examples, device=CPU).inputs["attention_mask"]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], "of the sources, which the encoder reads"


def reversed_pairs():
    """Three words backwards; those held out are never trained on."""
    rows = [{"source": f"{a} {b} {c}", "target": f"{c} {b} {a}"} for a in WORDS for b in WORDS for c in WORDS]
    random.Random(0).shuffle(rows)
    return rows[32:], rows[:32]


def test_lora_writes_what_neither_the_commonest_answer_nor_the_head_alone_does(t5, tmp_path):
    train, held = reversed_pairs()
    found = {}
    for name, method in {
        "head": lorica.LoRA(r=12, alpha=24, target_modules=["lm_head"]),  # of full rank: 12 words
        "lora": lorica.LoRA(r=16, alpha=32, target_modules="all-linear"),
    }.items():
        attached = lorica.attach(lorica.load_base(t5), method, seed=1)
        settings = {"steps": 300, "rows_per_step": 32, "learning_rate": 1e-2, "warmup": 0.1}
        run = lorica.fit(attached, train, task="seq2seq", output=tmp_path / name, **settings)
        found[name] = lorica.evaluate(run.adapter, held, model=t5).metrics["exact_match"]
    assert found["lora"] > found["head"] + 0.3
    assert found["lora"] > 1 / len(held) + 0.3, "no answer is right twice"
    right = sum(lorica.generate(run.adapter, row["source"], model=t5).text == row["target"] for row in held)
    assert right / len(held) == found["lora"]


def test_wrong_rows_bases_and_tasks_are_errors(t5):
    with pytest.raises(DataError, match="field 'target' is missing; did you mean 'targte'") as error:
        taught(t5, [ROWS[0], {"source": "w1", "targte": "w2"}, {"source": " ", "target": "w1"}])
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == ["rows[1]", "rows[2]"]
    with pytest.raises(ModelError, match="seq2seq: a llama base has no encoder"):
        from_anything(lorica.load_base("embedded"), ROWS, None, require_task("seq2seq"))
    with pytest.raises(RecipeError, match="measures"):
        require_task({"name": "seq2seq", "measures": ["blue"]})
    _, cut = taught(t5, ROWS, max_length=3)
    assert [drop.reason for drop in cut.dropped] == ["longer than 3 tokens", "target longer than 3 tokens"]


def test_a_target_that_is_cut_keeps_its_end_and_is_told(t5):
    _, data = taught(t5, ROWS, max_length=3, over_length="truncate")
    end = 1
    assert [each.target.tolist() for each in data.examples] == [[7, end], [5, 6, end], [11, 5, end]]
    assert [each.input_ids[-1] for each in data.examples] == [end] * 3
    assert data.truncated == ("rows[0]", "rows[1]"), "a source of four tokens, a target of five"


def test_measures_whose_package_is_missing_name_what_to_install(monkeypatch):
    monkeypatch.setattr("lorica.tasks.seq2seq.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"rouge-score and sacrebleu: pip install lorica\[texts\]"):
        scores_of(("exact_match", "rouge", "bleu"), ["a"], ["a"])
    assert scores_of(("exact_match",), ["a b", "c"], ["a  b", "d"]) == {"exact_match": 0.5}


def test_rouge_and_bleu_are_those_of_their_definitions():
    """One of two words right: recall 1/2 of two, precision 1; no pair of words; BLEU of equal texts is 100."""
    found = scores_of(("rouge",), ["sea"], ["sea sky"])
    assert found == {"rouge1": pytest.approx(2 / 3), "rouge2": 0.0, "rougeL": pytest.approx(2 / 3)}
    text = "the sea is under the sky"
    assert scores_of(("bleu",), [text], [text])["bleu"] == pytest.approx(100.0)
