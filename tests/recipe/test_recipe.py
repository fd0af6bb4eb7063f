"""Recipes: one value from YAML and back, and every mistake of a file told at once, each with its path."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.data import DataConfig, HoldOut
from lorica.errors import RecipeError
from lorica.methods import METHODS, Full, LoRA
from lorica.recipe import ModelConfig, Recipe, text
from lorica.tasks import TASKS
from lorica.train import TrainConfig

SQL = """\
model: HuggingFaceTB/SmolLM2-135M
method: {name: lora, r: 8, alpha: 16, target_modules: all-linear}
data: {train: train.jsonl, eval: eval.jsonl, max_length: 1024}
train: {epochs: 3, rows_per_step: 32, learning_rate: 2.0e-4, schedule: cosine, warmup: 0.03, min_lr_ratio: 0.1, seed: 0}
output: runs/sql
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str, name: str = "sql.yaml") -> Path:
        path = tmp_path / name
        path.write_text(content)
        return path

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, overrides)
    return str(caught.value).splitlines()


def test_the_recipe_of_the_plan_says_what_it_says(write) -> None:
    recipe = Recipe.load(write(SQL))
    assert recipe.model == ModelConfig(source="HuggingFaceTB/SmolLM2-135M")
    assert recipe.method == (LoRA(r=8, alpha=16, target_modules="all-linear"),)
    assert recipe.data == DataConfig(train="train.jsonl", eval="eval.jsonl", max_length=1024)
    assert recipe.train == TrainConfig(epochs=3, rows_per_step=32, learning_rate=2e-4)
    assert (recipe.task, recipe.output) == (TASKS["causal_lm"], "runs/sql")


def test_a_plain_string_stands_for_the_first_key_of_its_mapping(write) -> None:
    recipe = Recipe.load(write("model: embedded\nmethod: lora\ndata: rows.jsonl\n", "my-run.yaml"))
    assert recipe.model.source == "embedded"
    assert recipe.method == (LoRA(),)
    assert recipe.data.train == "rows.jsonl"
    assert recipe.output == "runs/my-run", "without an output the run is named after the recipe"


def test_method_may_be_a_list(write) -> None:
    recipe = Recipe.load(write("model: embedded\nmethod: [{name: lora, r: 3}, full]\ndata: rows.jsonl\n"))
    assert recipe.method == (LoRA(r=3), Full())


@pytest.mark.parametrize("number", ["2e-4", "2.0e-4", "0.0002", "'2e-4'"])
def test_numbers_that_yaml_reads_as_text_are_numbers(write, number: str) -> None:
    recipe = Recipe.load(write(SQL.replace("2.0e-4", number)))
    assert recipe.train.learning_rate == 2e-4


def test_a_recipe_is_built_in_python_from_configs_or_plain_values() -> None:
    by_values = Recipe(model="embedded", method={"name": "lora", "r": 4}, data={"train": "a"}, train={"steps": 2})
    by_configs = Recipe(
        model=ModelConfig(source="embedded"), method=LoRA(r=4), data=DataConfig(train="a"), train=TrainConfig(steps=2)
    )
    assert by_values == by_configs
    with pytest.raises(RecipeError, match=r"method\.rank: unknown key; did you mean 'r'\?"):
        Recipe(model="embedded", method={"name": "lora", "rank": 4}, data="a")


def test_the_resolved_recipe_is_yaml_that_gives_the_same_recipe(write) -> None:
    for content in (
        SQL,
        "model: embedded\nmethod: [lora, full]\ndata: {train: [a, b], eval: {by: file}}\noutput: '1e5'",
    ):
        recipe = Recipe.load(write(content))
        assert Recipe.load(write(recipe.to_yaml(), "again.yaml")) == recipe
        assert str(recipe) == recipe.to_yaml()


def test_overrides_are_read_as_yaml(write) -> None:
    overrides = ("method.r=16", "train.learning_rate=1e-3", "data.eval={by: file, share: 0.2}", "model=embedded")
    recipe = Recipe.load(write(SQL), overrides)
    assert recipe.method == (LoRA(r=16),)
    assert recipe.train.learning_rate == 1e-3
    assert recipe.data.eval == HoldOut(by="file", share=0.2)
    assert recipe.model.source == "embedded"


def test_overrides_reach_into_shorthands_lists_and_sections_that_are_not_there(write) -> None:
    path = write("model: embedded\nmethod: [lora, full]\ndata: rows.jsonl\n")
    recipe = Recipe.load(path, ("method.0.r=3", "train.epochs=7", "model.dtype=bfloat16"))
    assert recipe.method[0] == LoRA(r=3)
    assert recipe.train.epochs == 7
    assert recipe.model == ModelConfig(source="embedded", dtype="bfloat16")


def test_every_mistake_of_a_file_is_told_at_once_with_its_path(write) -> None:
    told = problems(
        write(
            """\
modle: x
model: {dtype: flot32}
method: {name: lora, rank: 8, lora_alpha: 16, r: x, dropout: 3}
data: {train: train.jsonl, evl: eval.jsonl, eval: {by: fil, share: 2}}
train: {lr: 3, learning_rate: fast, optimizer: {beta: 2}}
task: causal
"""
        )
    )
    assert set(told) == {
        "modle: unknown key; did you mean 'model'?",
        "model.source: is missing",
        "model.dtype: 'flot32' is not one of 'float32', 'bfloat16' or 'float16'; did you mean 'float32'?",
        "method.rank: unknown key; did you mean 'r'?",
        "method.lora_alpha: that is PEFT's name: write alpha",
        "method.r: should be a valid integer, not 'x'",
        "method.dropout: should be less than 1, not 3",
        "data.evl: unknown key; did you mean 'eval'?",
        "data.eval.by: 'fil' is not one of 'file' or 'row'; did you mean 'file'?",
        "data.eval.share: should be less than 1, not 2",
        "train.lr: unknown key; did you mean 'learning_rate'?",
        "train.learning_rate: 'fast' is not a number",
        "train.optimizer.beta: unknown key; did you mean 'betas'?",
        "task: there is no task 'causal'; did you mean 'causal_lm'?",
    }


def test_a_mistake_in_a_list_of_methods_names_the_entry(write) -> None:
    told = problems(write("model: embedded\nmethod: [{name: lora, rr: 3}, ful]\ndata: rows.jsonl\n"))
    assert "method.0.rr: unknown key" in told[0]
    assert told[1] == f"method.1: no method is called 'ful'; did you mean 'full'?; there are {', '.join(METHODS)}"


def test_what_is_missing_is_named(write) -> None:
    assert problems(write("train: {epochs: 3}\n")) == ["model: is missing", "method: is missing", "data: is missing"]


def test_two_answers_to_one_question_are_refused(write) -> None:
    (told,) = problems(write(SQL), "train.steps=5")
    assert told == "train: epochs and steps are two answers to one question; give one of them, null for the other"


def test_patience_for_evaluations_that_nobody_makes_is_refused(write) -> None:
    (told,) = problems(write("model: embedded\nmethod: lora\ndata: rows.jsonl\ntrain: {patience: 2}\n"))
    assert told.startswith("train.patience: 2 evaluations without a better loss, and nothing is evaluated; give rows")
    assert Recipe.load(write("model: embedded\nmethod: lora\ndata: {train: a, eval: b}\ntrain: {patience: 2}\n"))


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("model: a\nmodel: b\n", 2, "the key 'model' is there twice"),
        ("data: {train: a,\n  train: b}\n", 2, "the key 'train' is there twice"),
        ("model: &base a\noutput: *base\n", 1, "anchors and aliases are not read"),
        ("a: &a [x]\nb: [*a, *a]\n", 1, "anchors and aliases are not read"),
        ("model: a\nx: !!python/object/apply:os.getcwd []\n", 2, "could not determine a constructor"),
        ("1: a\n", 1, "the key 1 is not text"),
        ("model: [a\n", 2, "expected ',' or ']'"),
    ],
)
def test_yaml_that_could_mean_two_things_is_refused_with_its_line(write, content: str, line: int, said: str) -> None:
    path = write(content)
    (told,) = problems(path)
    assert told.startswith(f"{path}:{line}: ")
    assert said in told


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method.r", "write a key and a value"),
        ("=3", "write a key and a value"),
        ("method..r=3", "write a key and a value"),
        ("train.epochs.x=3", "is 3, which has no keys of its own"),
        ("method.r=[", "--set method.r:1"),
        ("method.q=3", "method.q: unknown key; it takes alpha"),
    ],
)
def test_overrides_that_make_no_sense_say_so(write, override: str, said: str) -> None:
    assert said in problems(write(SQL), override)[0]


def test_an_entry_of_a_list_that_is_not_there_is_named(write) -> None:
    path = write("model: embedded\nmethod: [lora, full]\ndata: rows.jsonl\n")
    assert "name one of its entries, 0 to 1" in problems(path, "method.2.r=3")[0]


def test_a_missing_file_names_the_nearest(write) -> None:
    path = write(SQL, "quick.yaml")
    assert problems(path.with_name("quikc.yaml"))[0].endswith("there is no such recipe; did you mean 'quick.yaml'?")
    assert "a recipe is a mapping" in problems(write("- a\n"))[0]


def test_recipes_are_frozen() -> None:
    recipe = Recipe(model="embedded", method="lora", data="a")
    with pytest.raises(ValueError, match="frozen"):
        recipe.output = "elsewhere"  # type: ignore[misc]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), plain, max_size=4))
def test_what_is_written_is_read_back_as_the_same_value(tree: dict) -> None:
    assert text.read(text.write(tree), "x") == tree


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "2026-01-01", "1:30", "0x1f", "1_000", "<<", "="])
def test_words_that_older_yaml_turns_into_something_else_stay_words(word: str) -> None:
    assert text.read(f"key: {word}", "x") == {"key": word}
