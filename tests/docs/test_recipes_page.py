"""The page of recipes and rows says what the code does: every key with its value, every shape, every source."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from lorica.data import DataConfig
from lorica.data.config import HoldOut
from lorica.data.shapes import SHAPES, recognise, understand
from lorica.recipe import Recipe
from lorica.recipe.recipe import ModelConfig
from lorica.train import TrainConfig

PAGE = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[BaseModel]] = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}


def listed(section: str) -> dict[str, str]:
    """The keys of a section's first table, with what the page says they are unless said."""
    text = PAGE.partition(f"\n## `{section}`\n")[2].partition("\n| key | unless said | |\n|---|---|---|\n")[2]
    found: dict[str, str] = {}
    for line in text.partition("\n\n")[0].splitlines():
        keys, default, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        names = re.findall(r"`(\w+)`", keys)
        values = default.split(", ") if len(names) > 1 else [default]
        found |= dict(zip(names, values, strict=True))
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_stands_on_the_page_with_its_value(section: str) -> None:
    kind, given = SECTIONS[section], {"model": {"source": "x"}, "data": {"train": "x"}, "train": {}}[section]
    held = kind.model_validate(given).model_dump(mode="json")
    told = listed(section)
    assert told.keys() == kind.model_fields.keys()
    for key, said in told.items():
        wanted = held[key]["name"] if key == "optimizer" else held[key]
        if key in given:
            assert said == ""
        else:
            assert yaml.safe_load(said.split(", ")[0]) == wanted, key


def test_what_is_held_out_is_what_the_page_says() -> None:
    written = re.search(r"`(\{by: row.*?\})`", PAGE)
    assert written
    assert HoldOut(**yaml.safe_load(written[1])) == HoldOut()


def test_the_recipe_on_the_page_is_one(tmp_path: Path) -> None:
    written = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert written
    (tmp_path / "recipe.yaml").write_text(written[1])
    assert Recipe.load(tmp_path / "recipe.yaml").output == "runs/mine"


def test_every_shape_has_a_row_that_is_read_as_it() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\{.*\})` \|$", PAGE, re.MULTILINE))
    assert rows.keys() == SHAPES.keys()
    for shape, row in rows.items():
        assert recognise(json.loads(row)) == shape
        understand(json.loads(row), recognise(json.loads(row)))
