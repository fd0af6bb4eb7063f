"""Every method has a page, and the figures of the index are those that were measured."""

import json
from pathlib import Path

from lorica.methods import METHODS

ROOT = Path(__file__).parents[2]


def rows() -> dict[str, list[str]]:
    lines = (ROOT / "docs/methods/README.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    return {cell[0].removeprefix("[").partition("]")[0]: cell for cell in cells}


def test_the_index_has_every_method_and_a_page_for_each():
    assert rows().keys() == METHODS.keys()
    pages = {path.stem for path in (ROOT / "docs/methods").glob("*.md")}
    assert METHODS.keys() <= pages


def test_the_figures_of_the_index_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks/results/methods.json").read_text())["methods"]
    for row in measured:
        count = row["trainable_parameters"]
        told = [
            "-" if count is None else f"{count:,}",
            *(row.get(f"relative_{of}", "-") for of in ("step_time", "memory")),
        ]
        assert rows()[row["name"]][1:4] == [str(value) for value in told]
