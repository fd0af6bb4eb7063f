"""docs/combining.md: its tables are the measurement, its commands and names are there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import lorica
from lorica.adapter.combine import HOWS
from lorica.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "combining.md").read_text()
RESULT = json.loads((ROOT / "benchmarks" / "results" / "combining.json").read_text())


def rows(heading: str) -> list[list[str]]:
    """The cells of the table that begins with this line."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    end = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[:end]]


def measured(**asked: Any) -> dict[str, Any]:
    """The one row of the measurement of which this is true."""
    (found,) = [row for row in RESULT["losses"] if all(row.get(key) == value for key, value in asked.items())]
    return found


def of_row(name: str) -> dict[str, Any]:
    plain = {"the base": "none, the base", "C alone": "c", "prose alone": "prose"}
    if name in plain:
        return measured(adapter=plain[name])
    weights = re.search(r", ([\d.]+) and ([\d.]+)$", name)
    given = [float(each) for each in weights.groups()] if weights else [0.5, 0.5]
    rank, density = re.search(r"r=(\d+)", name), re.search(r"density ([\d.]+)", name)
    how = re.match(r"\w+", name)
    assert how
    pruned = {} if how[0] in ("exact", "svd") else {"density": float(density[1]) if density else 0.5}
    return measured(weights=given, how=how[0], r=int(rank[1]) if rank else None, **pruned)


@pytest.mark.parametrize("row", rows("| | C | prose | error | MB |"), ids=lambda row: row[0])
def test_the_example_is_what_was_measured(row: list[str]) -> None:
    name, c, prose, error, size = row
    found = of_row(name)
    assert (float(c), float(prose)) == pytest.approx((found["c"], found["prose"]), abs=6e-4)
    if error:
        assert float(error) == pytest.approx(found["error"], abs=6e-3)
    assert not size or "megabytes" not in found or float(size) == pytest.approx(found["megabytes"], abs=6e-3)


@pytest.mark.parametrize("row", rows("| C resized | mean rank")[1:], ids=lambda row: row[0])
def test_the_sizes_are_what_was_measured(row: list[str]) -> None:
    option, value = row[0].strip("`-").split()
    (found,) = [each for each in RESULT["c_resized"] if each.get(option) == float(value)]
    assert float(row[1]) == pytest.approx(found["mean_rank"], abs=0.06)
    assert float(row[2].rstrip(" %")) / 100 == pytest.approx(found["energy_kept"], abs=6e-4)
    assert (float(row[3]), float(row[4])) == pytest.approx((found["c"], found["megabytes"]), abs=6e-3)


def test_the_overlap_is_what_was_measured() -> None:
    one, two = RESULT["overlap"]["one_seed"], RESULT["overlap"]["two_seeds"]
    told = (
        f"cosine {one['cosine']:.2f}, outputs {one['phi_outputs']:.2f} (by chance {one['chance_outputs']:.2f}), "
        f"inputs {one['phi_inputs']:.2f} (by chance {one['chance_inputs']:.2f})"
    )
    assert told in " ".join(PAGE.split())
    assert f"Prose from seed 1 has {two['phi_inputs']:.2f}" in PAGE


def test_every_way_and_every_command_of_the_page_is_there() -> None:
    assert [row[0].strip("`") for row in rows("| `--how` | what it does")] == list(HOWS)
    assert set(re.findall(r"lorica (\w+) ", PAGE)) <= set(COMMANDS)
    assert set(re.findall(r"lorica\.(\w+)\(", PAGE)) <= set(lorica.__all__)
