"""The speed bench on what is small: every side computes the same thing, and what is not the same is seen."""

import io
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed.__main__ import write
from benchmarks.speed.agreement import allowed, of_losses, of_probes
from benchmarks.speed.floor import step_operations
from benchmarks.speed.gate import Gate, Home
from benchmarks.speed.lessons import Lessons, mixed
from benchmarks.speed.page import page
from benchmarks.speed.process import SideError, Worker
from benchmarks.speed.rounds import Length, Side, measured
from benchmarks.speed.setting import Setting
from benchmarks.speed.shapes import SMOLLM2
from benchmarks.speed.topics import ROWS, TOPICS
from benchmarks.speed.wanted import FIGURES, verdicts
from benchmarks.speed.worker import SIDES

ROOT = Path(__file__).parents[2]
STEPS = 3


@pytest.fixture(scope="module")
def setting(tmp_path_factory: Any) -> Setting:
    return Setting.quickly(tmp_path_factory.mktemp("speed"), threads=1)


@pytest.fixture(scope="module")
def orders(setting: Setting) -> dict[str, dict[str, Any]]:
    """What the topics would have measured."""
    given: dict[str, dict[str, Any]] = {}

    def noted(asked: Any, *rest: Any) -> Any:
        given.update(asked)
        raise Home

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.speed.topics.measured", noted)
        for name in ("full", "dora", "mixed", "dense"):
            with pytest.raises(Home):
                TOPICS[name](setting, lambda line: None)
    return given


def taken(order: dict[str, Any]) -> dict[str, Any]:
    """Three steps of a side in this process."""
    answers = io.StringIO()
    module = import_module(f"benchmarks.speed.sides.{SIDES[order['side']]}")
    with pytest.raises(Home):
        module.run(order, Gate(io.StringIO(json.dumps({"steps": STEPS}) + "\n"), answers))
    ready, found = (json.loads(line) for line in answers.getvalue().splitlines())
    side = Side(ready["ready"])
    side.took(found, untimed=1)
    return side.found()


@pytest.fixture(scope="module")
def lorica(orders: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return taken(orders["lorica"])


PLACES = ROWS * 63


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["peft", "peft, adapters in bfloat16, eager attention", "peft, HF Trainer"])
def test_a_peer_learns_what_lorica_learns(lorica, orders, name):
    peer = taken(orders[name])
    found = of_losses({"lorica": lorica, name: peer}, places=PLACES)
    assert found["agree"], found
    assert found["steps"] == STEPS
    assert peer["ready"]["trainable"] == lorica["ready"]["trainable"]
    assert peer["tokens"] == lorica["tokens"] == [ROWS * 64] * (STEPS - 1)


@pytest.mark.filterwarnings("ignore")
def test_a_peer_that_computes_something_else_is_seen(lorica, orders):
    other = taken({**orders["peft"], "alpha": 32})
    assert not of_losses({"lorica": lorica, "other": other}, places=PLACES)["agree"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ours", "theirs"), [("lorica, dora", "peft, dora"), ("lorica, full", "transformers, full, float32 under autocast")]
)
def test_dora_and_full_fine_tuning_agree_as_well(orders, ours, theirs):
    sides = {name: taken(orders[name]) for name in (ours, theirs)}
    assert of_losses(sides, places=PLACES)["agree"], [side["losses"] for side in sides.values()]


@pytest.mark.filterwarnings("ignore")
def test_trainers_that_shuffle_are_compared_before_they_learn(orders):
    sides = [taken(orders[name]) for name in orders if "by length" in name]
    for side in sides:
        assert all(cells >= tokens for cells, tokens in zip(side["cells"], side["tokens"], strict=True))
    assert of_probes({str(place): side for place, side in enumerate(sides)}, places=80)["agree"]
    assert not of_probes({"a": {"ready": {"probe": 6.0}}, "b": {"ready": {"probe": 6.1}}}, places=80)["agree"]


def test_what_is_not_a_number_does_not_agree():
    sides = {"a": {"losses": [1.0, 1.0]}, "b": {"losses": [1.0, float("nan")]}}
    assert not of_losses(sides, places=1)["agree"]
    assert allowed(10_000) == pytest.approx(4 * 0.00390625 / 100)


def test_the_floor_is_the_sum_of_its_products():
    """SmolLM2's: 106,168,320 weights of linears, a head of 28,311,552, 2,442,240 of an adapter of rank 8."""
    length = 512
    attention = 7 * length * 576 * 30 * length
    head = 28_311_552 * (length - 1)
    assert step_operations(SMOLLM2, [length], r=8) == pytest.approx(
        length * (4 * 106_168_320 + 6 * 2_442_240) + 4 * head + attention
    )
    full = length * 6 * 106_168_320 + 6 * head + attention
    assert step_operations(SMOLLM2, [length] * 4, r=None) == pytest.approx(4 * full)


def test_lengths_are_mixed_as_they_are_said_to_be():
    lengths = [len(row) for row in mixed(512, 100, mean=200, longest=2048, tokens_per_step=2048).rows]
    assert 180 < sum(lengths) / len(lengths) < 220
    assert 4 <= min(lengths) < 60
    assert 800 < max(lengths) <= 2048


def test_lessons_are_read_as_they_were_written(tmp_path):
    lessons = mixed(8, 50, mean=10, longest=20, tokens_per_step=32)
    assert Lessons.read(str(lessons.write(tmp_path / "lessons.json"))) == lessons


def test_sides_in_processes_take_turns(setting, tmp_path):
    order = setting.order("products", shapes=[[64, 64, 64]], held_s=0.01)
    lines: list[str] = []
    found = measured({"a": order, "b": order}, Length(warmup=1, rounds=2, timed=1), tmp_path, lines.append)
    turns = [line.partition(", ")[2][0] for line in lines if line.startswith("round")]
    assert turns == ["a", "b", "b", "a"]
    assert [len(side["seconds"]) for side in found.values()] == [2, 2]
    assert all(
        side["gflops"][0] > 0 and side["held_gflops"][0] > 0 and side["peak_bytes"] > 1e7 for side in found.values()
    )


def test_a_side_that_fails_says_why(tmp_path):
    with pytest.raises(SideError, match="no side 'nobody'"):
        _ = Worker("lost", {"side": "nobody"}, tmp_path / "log").ready


def in_this_process(asked: dict[str, dict[str, Any]], *rest: Any) -> dict[str, Any]:
    return {name: taken(order) for name, order in asked.items()}


def test_growth_and_memory_have_their_place_on_the_page(setting, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.topics.measured", in_this_process)
    only = replace(setting, only=("lorica",))
    topics = {name: TOPICS[name](only, lambda line: None) for name in ("linear", "memory")}
    found = verdicts(topics)[-1]
    assert found["found"] > 0
    text = page({"topics": {name: {**topic, "machine": DENSE["machine"]} for name, topic in topics.items()}})
    assert text.count("<svg") == 3
    assert "| 512 |" in text
    assert "| lorica |" in text


def side(seconds: float, peak: float, rate: float = 1.0, **more: Any) -> dict[str, Any]:
    spread = {"median": seconds, "low": seconds, "high": seconds}
    tokens = {"median": rate, "low": rate, "high": rate, "whole": rate}
    return {"step_seconds": spread, "tokens_per_second": tokens, "peak_bytes": peak, "seconds": [seconds], **more}


DENSE = {
    "about": "drawn",
    "machine": {"cores": 2, "processor": "none", "versions": dict.fromkeys(("torch", "transformers", "peft"), "1")},
    "sides": {
        "lorica": side(2.0, 2e9),
        "peft": side(5.0, 3.9e9),
        "peft, adapters in bfloat16": side(4.5, 3e9),
        "peft, adapters in bfloat16, eager attention": side(4.2, 3e9),
        "peft, compiled": side(3.0, 3e9),
        "products": {"gflops": [900.0], "held_gflops": [800.0, 750.0, 700.0]},
    },
    "operations": {"adapter": 1.35e12, "adapter, without its own": 1.3e12, "full": 2e12},
    "peak_gflops": 900.0,
    "agreement": {"of": "losses", "apart": {"peft": 1e-5}, "allowed": 3e-4, "steps": 9, "agree": True},
}


def test_a_peer_is_taken_at_its_best():
    found = {each["figure"]: each for each in verdicts({"dense": DENSE})}
    assert len(found) == len(FIGURES)
    said = [(each["found"], each["met"]) for each in found.values() if each["found"] is not None]
    assert said == [(2.5, True), (2.1, True), (1.5, False), (0.75, True), (1.95, False)]


def test_the_page_says_what_the_result_says(tmp_path):
    write(tmp_path, "dense", DENSE)
    text = (tmp_path / "docs" / "speed.md").read_text()
    assert page(json.loads((tmp_path / "benchmarks" / "results" / "speed.json").read_text())) == text
    assert "| dense, step time: PEFT under torch.compile / Lorica | at least 1.70 | 1.50 | **not met** |" in text
    assert "not measured" in text
    assert "| peft, compiled | 3 [3, 3] | 1 | 3.00 GB |" in text
    assert "comes to 750 GFLOP/s (median); of that Lorica's step reaches 90%." in text


def test_the_page_in_the_docs_is_of_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    assert (ROOT / "docs" / "speed.md").read_text() == page(result)
    assert result["wanted"] == verdicts(result["topics"])
