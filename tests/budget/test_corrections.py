"""What was measured here corrects later plans of the same kind here, and nothing else does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorica.budget import Memory, corrections
from lorica.budget.corrections import IN_THE_STEP, correction, remember

KEY = {"cpu": "a", "dtype": "bfloat16", "versions": {"torch": "2"}}
MEMORY = Memory(
    weights=10,
    adapter=20,
    gradients=30,
    optimizer=40,
    activations=1000,
    logits=100,
    buffers=60,
    allocator=40,
    context=7,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORICA_CACHE", str(tmp_path))
    return tmp_path / "corrections.json"


def test_nothing_measured_corrects_nothing() -> None:
    assert correction(KEY, 100) == (None, None)


def test_the_median_of_what_was_measured_under_the_same_key_counts() -> None:
    for ratio in (1.0, 1.2, 3.0):
        remember(KEY, {"step": ratio, "flops": 100, "tflops": ratio})
    remember({**KEY, "cpu": "b"}, {"step": 0.5, "flops": 100, "tflops": 9.0})
    known, note = correction(KEY, 100)
    assert note is None
    assert known is not None
    assert (known.count, known.step, known.tflops, known.context) == (3, 1.2, 1.2, None)
    corrected = known.of(MEMORY)
    fixed = ("weights", "adapter", "gradients", "optimizer", "context")
    assert all(getattr(corrected, name) == getattr(MEMORY, name) for name in fixed)
    assert all(getattr(corrected, name) == int(1.2 * getattr(MEMORY, name)) for name in IN_THE_STEP)


def test_a_small_run_measures_the_process_and_not_the_step() -> None:
    remember(KEY, {"context": -3, "flops": 100, "tflops": 1.0})
    known, _ = correction(KEY, 100)
    assert known is not None
    assert known.of(MEMORY) == replace(MEMORY, context=4)


def test_rates_are_of_bases_of_about_the_same_size() -> None:
    remember(KEY, {"step": 1.1, "flops": 100, "tflops": 1.0})
    found = {flops: correction(KEY, flops)[0] for flops in (40, 60, 150, 250)}
    assert [None if each is None else each.tflops for each in found.values()] == [None, 1.0, 1.0, None]
    assert all(each is not None and each.step == 1.1 for each in found.values())


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": 99, "measured": []}',
        '{"format": 1, "measured": [{"key": KEY, "step": 1e9, "flops": 1}]}',
        '{"format": 1, "measured": [{"key": KEY, "step": true, "flops": 1}]}',
        '{"format": 1, "measured": [7]}',
    ],
)
def test_a_damaged_or_foreign_file_is_told_and_not_used_and_written_anew(cache: Path, content: str) -> None:
    cache.write_text(content.replace("KEY", json.dumps(KEY)))
    known, note = correction(KEY, 100)
    assert known is None
    assert note is not None
    assert str(cache) in note
    assert "\n" not in note
    remember(KEY, {"step": 1.5, "flops": 100, "tflops": 1.0})
    known, note = correction(KEY, 100)
    assert note is None
    assert known is not None
    assert known.step == 1.5


def test_the_file_stays_small() -> None:
    old = [{"key": {"n": n}, "step": 1.0, "flops": 1, "tflops": 1.0} for n in range(corrections.KEPT + 5)]
    corrections.path().write_text(json.dumps({"format": 1, "measured": old}))
    remember(KEY, {"step": 1.0, "flops": 1, "tflops": 1.0})
    kept = json.loads(corrections.path().read_text())["measured"]
    assert len(kept) == corrections.KEPT
    assert kept[-1]["key"] == KEY
