"""Named sizes: the numbers they stand for, where they differ from popular ones, and what is said of a wrong name."""

import pytest
from pydantic import ValidationError

from lorica import api
from lorica.errors import RecipeError
from lorica.methods import Full, LoRA
from lorica.methods.presets import PRESETS, preset
from lorica.recipe import Recipe


def recipe(method, **more):
    return Recipe(model="embedded", method=method, data="rows.jsonl", **more)


@pytest.mark.parametrize(
    ("name", "r", "alpha", "dropout"), [("small", 8, 16, 0.1), ("medium", 16, 32, 0.05), ("large", 64, 128, 0.0)]
)
def test_a_preset_is_a_lora_with_numbers_in_recipe_and_python_alike(name, r, alpha, dropout):
    expected = LoRA(r=r, alpha=alpha, dropout=dropout, target_modules="all-linear")
    assert LoRA.preset(name) == expected
    assert recipe({"preset": name}).method == (expected,)
    assert recipe({"name": "lora", "preset": name}).method == (expected,)
    assert recipe([{"preset": name}, "full"]).method == (expected, Full())


def test_all_sizes_have_one_scale_so_that_one_learning_rate_serves_them():
    assert {size.alpha / size.r for size in PRESETS.values()} == {2}
    assert {size.to_dict()["learning_rate"] for size in PRESETS.values()} == {2e-4}


def test_what_is_written_beside_a_preset_counts_more():
    assert LoRA.preset("large", r=32) == LoRA(r=32, alpha=128)
    assert recipe({"preset": "small", "dropout": 0.0}).method == (LoRA(r=8, alpha=16, dropout=0.0),)


def test_the_resolved_recipe_keeps_the_numbers_and_builds_the_same_run_again():
    resolved = recipe({"preset": "medium"})
    tree = resolved.to_dict()
    assert "preset" not in tree["method"]
    assert (tree["method"]["r"], tree["method"]["alpha"]) == (16, 32)
    assert Recipe(**tree) == resolved


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"preset": "smal"}, "method: preset: 'smal' is none of small, medium, large; did you mean 'small'?"),
        ({"preset": 3}, "method: preset: 3 is none of small, medium, large"),
        ({"name": "lora", "presets": "small"}, "method.presets: unknown key; did you mean 'preset'?"),
        ({"preset": "small", "rr": 3}, "method.rr: unknown key; did you mean 'r'?"),
        ({"name": "full", "preset": "small"}, "method.preset: unknown key; it takes name"),
    ],
    ids=["near miss", "no name", "preset misspelt", "a field misspelt", "another method"],
)
def test_a_wrong_preset_names_the_near_miss(method, told):
    with pytest.raises(RecipeError) as refused:
        recipe(method)
    assert str(refused.value) == told


def test_python_says_the_same_of_a_wrong_name():
    with pytest.raises(RecipeError, match="did you mean 'medium'"):
        preset("mediun")
    with pytest.raises(ValidationError, match="did you mean 'large'"):
        LoRA(preset="larg")  # type: ignore[call-arg]


def test_the_plan_shows_numbers_targets_and_where_to_start_with_the_learning_rate():
    shown = str(api.plan(recipe({"preset": "small"})))
    assert "r=8 s=2" in shown
    assert "all-linear -> 42" in shown
    assert "start at 2e-4" in shown
    assert "a tenth of LoRA's" in str(api.plan(recipe("full")))


def test_the_table_of_methods_explains_every_size_and_where_popular_advice_differs():
    table = api.method_table()
    for size in PRESETS.values():
        assert size.use in str(table)
        assert size.against in str(table)
    presets = {row["name"]: row["presets"] for row in table.to_dict()}
    assert presets["lora"]["large"]["r"] == 64
    assert presets["full"] == {}


def test_a_preset_set_on_the_command_line_resolves_too(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: embedded\ndata: rows.jsonl\n")
    assert Recipe.load(path, ("method.preset=small",)).method == (LoRA.preset("small"),)
