"""What a person asks of an adapter or of rows is asked as their task reads them: reports, answers, scores."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

import lorica
from benchmarks import tasks
from lorica.api import data_report
from lorica.cli.entry import run
from lorica.errors import RecipeError, RequestError

LORA = lorica.LoRA(r=2, alpha=3)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: str(tasks.make_base(tmp_path_factory.mktemp(kind), kind)) for kind in ("bert", "t5", "vit")}


def rows(draw: Any, folder: Path, count: int = 12) -> list[dict[str, Any]]:
    return [draw(random.Random(number), folder) for number in range(count)]


def written(folder: Path, draw: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(draw, folder)))
    return str(folder / "rows.jsonl")


def test_rows_are_reported_as_their_task_reads_them(bases, tmp_path, capsys):
    source = written(tmp_path, tasks.topical)
    told = data_report(source, bases["bert"], task="classification")
    drawn = [row["label"] for row in rows(tasks.topical, tmp_path)]
    assert told.answers is not None
    assert told.answers.commonest == {label: drawn.count(label) for label in set(drawn)}
    assert told.preview[0].answer == drawn[0]
    assert f"answers   {len(set(drawn))} different: " in str(told)
    assert "12 rows learned" in str(told)
    assert run(["data", source, "--model", bases["bert"], "--task", "classification", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "classification"


def test_a_recipe_names_rows_base_and_task_of_the_report(bases, tmp_path, capsys):
    source = written(tmp_path, tasks.reversed_words)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {bases['t5']}\nmethod: lora\ntask: seq2seq\ndata: {source}\noutput: {tmp_path}/run\n")
    assert run(["data", str(recipe), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["task"], told["unit"], told["label_tokens"]) == ("seq2seq", "label tokens", 12 * 4)
    assert told["preview"][0]["answer"] == rows(tasks.reversed_words, tmp_path)[0]["target"]
    assert run(["data", str(recipe), "--task", "dpo"]) == 2
    assert "the recipe names its task" in capsys.readouterr().err
    assert run(["data", source]) == 2
    assert "--model" in capsys.readouterr().err


def test_images_are_doubles_by_what_they_show(bases, tmp_path):
    for number in (1, 2, 3):
        tasks.placed(random.Random(number), tmp_path)
    first = next(tmp_path.rglob("*.png"))
    (first.parent / "again.png").write_bytes(first.read_bytes())
    labels = {"name": "image_classification", "labels": ["elsewhere", "left"]}
    assert data_report(str(tmp_path), bases["vit"], task=labels).duplicates.count == 1


def test_an_answer_is_as_long_as_asked_or_cannot_be(bases):
    attached = lorica.attach(lorica.load_base(bases["t5"], task="seq2seq"), LORA)
    lengths = [len(lorica.generate(attached, "w1 w2", max_tokens=most).text.split()) for most in (1, 3, 5)]
    assert lengths == sorted(set(lengths)), "random weights write on until they are stopped"
    with pytest.raises(RecipeError, match=r"task\.max_tokens"):
        lorica.generate(attached, "w1", max_tokens=0)
    attached.detach()
    labels = {"name": "classification", "labels": ["sea", "sky"]}
    classifier = lorica.attach(lorica.load_base(bases["bert"], task=labels), LORA)
    assert lorica.generate(classifier, "sea1").text in ("sea", "sky")
    with pytest.raises(RequestError, match="classification: max_tokens: an answer is not written token by token"):
        lorica.generate(classifier, "sea1", max_tokens=5)
    with pytest.raises(RequestError, match="classification: temperature"):
        lorica.generate(classifier, "sea1", temperature=0.5)


def test_a_model_is_scored_by_what_it_was_last_fitted_for_until_the_adapter_is_off(bases, tmp_path, monkeypatch):
    from lorica.train.loop import Trainer

    def interrupted(self: Trainer) -> None:
        raise KeyboardInterrupt

    model = lorica.load_base(bases["t5"])
    attached = lorica.attach(model, LORA)
    drawn = rows(tasks.reversed_words, tmp_path)
    monkeypatch.setattr(Trainer, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lorica.fit(attached, drawn, task="seq2seq", steps=2)
    assert "exact_match" in lorica.evaluate(None, drawn, model=model).metrics
    assert "exact_match" in lorica.evaluate(attached, drawn).metrics
    attached.detach()
    assert getattr(model, "task", None) is None


def test_an_adapter_of_the_head_alone_is_inspected_and_scored(bases, tmp_path):
    labels = {"name": "classification", "labels": list(tasks.TOPICS)}
    attached = lorica.attach(lorica.load_base(bases["bert"], task=labels), lorica.METHODS["head"]())
    drawn = rows(tasks.topical, tmp_path)
    done = lorica.fit(attached, drawn, steps=2, output=tmp_path / "run")
    found = lorica.inspect(done.adapter)
    assert {site.name for site in found.sites} == {"classifier.weight", "classifier.bias"}
    assert found.trained_parameters == attached.trainable_parameters
    assert lorica.evaluate(done.adapter, drawn, model=bases["bert"]).metrics["rows"] == 12
