"""Preference tuning: equation 7 to rounding, the base as its reference, micro-batches, resuming, and that it learns."""

import json
import math
import random
from functools import partial

import pytest
import torch

import lorica
from lorica.api.lessons import from_anything
from lorica.data import DataConfig
from lorica.errors import DataError, RecipeError, RequestError
from lorica.tasks import require_task
from micro_batches import same_however_cut
from oracles import preference
from tiny_bases import stir

CPU = torch.device("cpu")
ASKED, GOOD, BAD = ([f"{kind}{n}" for n in range(12)] for kind in ("ask", "good", "bad"))
LORA = lorica.LoRA(r=3, alpha=8, dropout=0.3, target_modules="all-linear")
ROWS = [
    {"prompt": "ask1 ask2", "chosen": " good1 good2 good3", "rejected": " bad1"},
    {"prompt": "ask3", "chosen": " good4", "rejected": " bad2 bad3 good1 bad5"},
    {"prompt": "ask3 ask4 ask5", "chosen": " good4 good7", "rejected": " bad2 good7"},
]


def base(kind, folder):
    """A tiny causal base of random weights; kind "llama" is our own decoder, "gpt2" a model of transformers."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "<s>", "</s>", "system", "user", "assistant", *ASKED, *GOOD, *BAD]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"vocab_size": len(words), "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    if kind == "llama":
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **shape, max_position_embeddings=64))
    else:
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    return base(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return base("llama", tmp_path_factory.mktemp("llama"))


def attached_with(folder, task, rows, **options):
    """(attached with noise in every tensor, rows with what the base says of them)"""
    model = lorica.load_base(folder, dtype="float64")
    data = from_anything(model, rows, DataConfig(train="rows", **options), task)
    data = task.compared(model, data, micro_batch_tokens=100)
    attached = lorica.attach(model, LORA, seed=1)
    stir(attached.named_parameters())
    return attached, data


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_equation_7_with_the_base_as_reference(folder, smoothing):
    task = require_task({"name": "dpo", "beta": 0.3, "label_smoothing": smoothing})
    attached, data = attached_with(folder, task, ROWS)

    def said(model, document):
        tokens = document.input_ids.tolist()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0]
        return preference.log_probability(logits, tokens, document.labels)

    policy = [[said(attached.model, part) for part in pair.documents()] for pair in data.examples]
    with attached.off() as bare:
        reference = [[said(bare, part) for part in pair.documents()] for pair in data.examples]
    losses = [preference.loss(p, r, 0.3, smoothing) for p, r in zip(policy, reference, strict=True)]
    ours = task.loss(attached.model, task.batch(data.examples, device=CPU))
    assert ours.item() == pytest.approx(sum(losses), rel=1e-11)
    metrics = task.evaluate(attached.model, data, micro_batch_tokens=9)
    rewards = 0.3 * (torch.tensor(policy) - torch.tensor(reference))
    assert metrics["loss"] == pytest.approx(sum(losses) / 3, rel=1e-11)
    assert metrics["reward_chosen"] == pytest.approx(rewards[:, 0].mean().item(), rel=1e-5)
    assert metrics["reward_accuracy"] == pytest.approx((rewards[:, 0] > rewards[:, 1]).double().mean().item())


def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(folder):
    task = require_task("dpo")
    attached, data = attached_with(folder, task, ROWS)
    whole = same_however_cut(attached, task, data.examples)
    assert whole.keys() == dict(attached.named_parameters()).keys()


def drawn(count, seed=0):
    """The chosen answer is of good words; both begin and end anywhere in the vocabulary of their kind."""
    draw = random.Random(seed)
    texts = lambda words, n: " ".join(draw.choices(words, k=n))  # noqa: E731
    return [
        {"prompt": texts(ASKED, draw.randint(1, 4)), "chosen": f" {texts(GOOD, 2)}", "rejected": f" {texts(BAD, 2)}"}
        for _ in range(count)
    ]


def test_it_begins_at_log_2_and_learns_what_is_preferred(llama, tmp_path):
    train, held = drawn(96), drawn(48, seed=1)
    attached = lorica.attach(lorica.load_base(llama), lorica.LoRA(r=4, alpha=8, target_modules="all-linear"), seed=1)
    before = lorica.evaluate(attached, held, task="dpo").metrics
    assert before["loss"] == math.log(2)
    assert before["reward_accuracy"] == 0.5
    settings = {"steps": 40, "rows_per_step": 16, "learning_rate": 5e-3}
    run = lorica.fit(attached, train, held, task="dpo", output=tmp_path / "run", **settings)
    assert run.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    after = lorica.evaluate(run.adapter, held, model=llama).metrics
    assert after["reward_accuracy"] > 0.9
    assert after["loss"] < 0.5
    assert after["reward_chosen"] > after["reward_rejected"]
    assert after["loss"] == pytest.approx(run.eval["eval_loss"], rel=1e-4)
    assert lorica.evaluate(run.adapter, held, model=llama, base=True).metrics["loss"] == math.log(2)
    assert lorica.generate(run.adapter, "ask1", model=llama, max_tokens=2).tokens
    recorded = json.loads((tmp_path / "run/adapter/lorica.json").read_text())
    assert (recorded["task"], recorded["data"]["shape"]) == ("dpo", "prompt_completion")


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(llama, tmp_path, monkeypatch):
    from lorica.train.loop import Trainer

    def run(folder, resume=False):
        attached = lorica.attach(lorica.load_base(llama), LORA, seed=1)
        settings = {"steps": 6, "rows_per_step": 8, "learning_rate": 1e-2, "checkpoint_every": 3}
        lorica.fit(attached, drawn(20), drawn(8, 1), task="dpo", output=folder, resume=resume, **settings)
        return {key: tensor.clone() for key, tensor in attached.state().items()}

    whole = run(tmp_path / "whole")
    learn, taken = Trainer._learn, []

    def stopped(self):
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(learn(self))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_learn", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    again = run(tmp_path / "cut", resume=True)
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())


USER, GOOD_ANSWER, BAD_ANSWER = (
    {"role": "user", "content": "ask1"},
    {"role": "assistant", "content": "good1"},
    {"role": "assistant", "content": "bad1"},
)
CHATS = {
    "messages for all": {"prompt": [USER], "chosen": [GOOD_ANSWER], "rejected": [BAD_ANSWER]},
    "whole chats": {"chosen": [USER, GOOD_ANSWER], "rejected": [USER, BAD_ANSWER]},
    "whole chats and their prompt": {"prompt": "ask1", "chosen": [USER, GOOD_ANSWER], "rejected": [USER, BAD_ANSWER]},
    "a prompt and turns": {"prompt": "ask1", "chosen": [GOOD_ANSWER], "rejected": [BAD_ANSWER]},
    "messages and texts": {"prompt": [USER], "chosen": "good1", "rejected": "bad1"},
}


@pytest.mark.parametrize("case", CHATS)
def test_chats_in_every_shape_are_the_same_pair(llama, case):
    model = lorica.load_base(llama)
    read = partial(from_anything, model, config=DataConfig(train="rows"), task=require_task("dpo"))
    data, first = read([CHATS[case]]), read([CHATS["messages for all"]])
    assert data.shape == "messages"
    assert data.fingerprint == first.fingerprint
    for part, answer in zip(data[0].documents(), ("good1", "bad1"), strict=True):
        assert model.tokenizer.decode(part.input_ids[part.labels]).startswith(answer)


WRONG = {
    "no prompt": ({"chosen": "good1", "rejected": "bad1"}, "field 'prompt' is missing"),
    "a near miss": ({"prompt": "ask1", "choosen": "good1", "rejected": "bad1"}, "'chosen' is missing; did you mean"),
    "a text and messages": ({"prompt": "ask1", "chosen": "good1", "rejected": [BAD_ANSWER]}, "both texts or both"),
    "a number": ({"prompt": 3, "chosen": "good1", "rejected": "bad1"}, "field 'prompt': text, not"),
    "no answer": ({"chosen": [USER, GOOD_ANSWER], "rejected": [USER]}, "does not end with a turn of the assistant"),
    "another shape": (CHATS["whole chats"], "a messages row among prompt_completion rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_errors_that_name_row_and_field(llama, case):
    row, told = WRONG[case]
    with pytest.raises(DataError, match=told) as error:
        from_anything(lorica.load_base(llama), [ROWS[0], row, row], None, require_task("dpo"))
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == ["rows[1]", "rows[2]"]


def test_what_teaches_nothing_is_dropped_and_what_does_not_fit_is_refused(llama):
    model, task = lorica.load_base(llama), require_task("dpo")
    same = {"prompt": "ask1", "chosen": "good1", "rejected": "good1"}
    data = from_anything(model, [ROWS[0], same], DataConfig(train="rows"), task)
    assert [drop.reason for drop in data.dropped] == ["chosen and rejected are the same"]
    cut = from_anything(model, ROWS, DataConfig(train="rows", max_length=4, over_length="truncate"), task)
    assert cut.truncated == ("rows[0]", "rows[1]"), "of six tokens, and the rejected answer of seven"
    assert [drop.reason for drop in cut.dropped] == ["no token to learn once cut to the limit"]
    with pytest.raises(DataError, match=r"data\.loss_on: the task dpo"):
        from_anything(model, ROWS, DataConfig(train="rows", loss_on="all"), task)
    with pytest.raises(RequestError, match=r"rows\[0\]: what the base says of this pair is not known"):
        task.batch(data.examples, device=CPU)
    with pytest.raises(RecipeError, match="beta"):
        require_task({"name": "dpo", "beta": 0})
