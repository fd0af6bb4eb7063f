"""A recipe with tokens of its own: planned, trained, scored and talked with, without a further word."""

import json
from pathlib import Path

import pytest

import lorica

WORDS = ("<sql>", "</sql>")


@pytest.fixture
def recipe(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lorica.Recipe:
    monkeypatch.chdir(place)
    rows = [{"prompt": f"row {n}: ", "completion": f"<sql>{n}</sql>"} for n in range(6)]
    for name in ("rows", "held"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lorica.Recipe(
        model={"source": "./base", "add_tokens": list(WORDS)},
        method={"name": "lora", "r": 2, "target_modules": "minimal"},
        data={"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "held.jsonl")},
        train={"steps": 3, "rows_per_step": 6, "learning_rate": 1e-2},
        output=str(tmp_path / "run"),
    )


def test_the_plan_of_a_recipe_trains_the_rows_of_its_tokens_in_an_untied_head_too(recipe: lorica.Recipe) -> None:
    plan = lorica.plan(recipe).plan
    rows = {site.name for site in plan.sites if site.kind == "parameter"}
    assert rows == {"model.embed_tokens.weight", "lm_head.weight"}
    assert "the named rows alone are trained and saved" in str(plan)
    assert "2 rows" in str(plan)


def test_a_run_with_its_own_tokens_is_scored_and_talked_with(recipe: lorica.Recipe) -> None:
    run = lorica.train(recipe)
    assert run.adapter is not None
    assert recipe.to_dict()["model"]["add_tokens"] == list(WORDS)
    told = json.loads((Path(run.adapter) / "lorica.json").read_text())
    assert told["added_tokens"] == list(WORDS)
    score = lorica.evaluate(run.adapter, recipe.data.eval)
    assert run.eval is not None
    assert score.metrics["loss"] == pytest.approx(run.eval["eval_loss"], rel=1e-5)
    # One token for each of the two words, one for the digit, and the end.
    assert score.metrics["label_tokens"] == 6 * 4
    assert lorica.generate(run.adapter, "row 1: ", max_tokens=4).tokens


def test_tokens_that_the_method_names_itself_are_left_as_they_are(recipe: lorica.Recipe) -> None:
    named = lorica.LoRA(r=2, target_modules="minimal", trainable_token_indices=(3,))
    plan = lorica.plan(lorica.Recipe(**{**recipe.to_dict(), "method": named})).plan
    assert [site.name for site in plan.sites if site.kind == "parameter"] == ["model.embed_tokens.weight"]
    whole = lorica.LoRA(r=2, target_modules="minimal", modules_to_save=("embed_tokens", "lm_head"))
    plan = lorica.plan(lorica.Recipe(**{**recipe.to_dict(), "method": whole})).plan
    assert plan.trainable_parameters > 2 * 259 * 32
