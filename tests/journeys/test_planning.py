"""Measuring, fitting and advising as a user does, on the tiny Llama and the embedded base."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lorica
from lorica import api
from lorica.api import rehearsing
from lorica.budget import corrections
from lorica.cli.entry import run
from lorica.errors import NoRoomError, RunError


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("LORICA_CACHE", str(tmp_path))
    return place


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = run(list(words))
    return status, *capsys.readouterr()


def test_a_batch_is_measured_in_a_process_of_its_own_and_corrects_the_next_plan(here: Path, capsys) -> None:
    held = bytearray(400_000_000)
    held[::4096] = b"x" * len(held[::4096])
    status, out, err = said(capsys, "plan", "count.yaml", "--measure", "--json")
    assert status == 0, err
    found = json.loads(out)
    measured = found["measured"]
    # a tiny run is little but the process: libraries in and out of it are within a tenth
    assert measured["peak"] == pytest.approx(found["memory_bytes"]["peak"], rel=0.2)
    assert measured["peak"] < 0.8e9, "what this process holds does not count"
    # at the worst moment of a step in one part its gradients are not there yet
    assert found["memory_bytes"]["gradients"] in (0, measured["gradients"])
    assert measured["gradients"] == measured["adapter"]
    for name in ("adapter", "optimizer"):
        # the optimiser counts its steps beside the moments: some bytes a tensor
        assert measured[name] == pytest.approx(found["memory_bytes"][name], rel=0.01)
    assert measured["step_tokens"] >= measured["micro_batch_tokens"] > 0
    assert measured["run_seconds"] > 0
    assert corrections.path().is_file()
    status, out, _ = said(capsys, "plan", "count.yaml")
    assert status == 0
    assert "corrected by 1 measurement on this machine: the process itself" in out
    assert "that steps reached here" in out
    status, out, _ = said(capsys, "plan", "count.yaml", "--device", "RTX 3090")
    assert "corrected" not in out, "another device is another matter"
    del held


def test_measuring_without_weights_is_one_line(here: Path, tmp_path: Path, capsys) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (here / "base" / name).exists():
            (bare / name).write_bytes((here / "base" / name).read_bytes())
    assert said(capsys, "plan", "count.yaml", "--set", f"model={bare}")[0] == 0, "a plan needs the config alone"
    status, _, err = said(capsys, "plan", "count.yaml", "--measure", "--set", f"model={bare}")
    assert status == 2
    assert err.count("\n") == 1
    assert "weights" in err


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (-signal.SIGABRT, RunError, "ended by signal 6: terminate called"),
        (-signal.SIGKILL, NoRoomError, "does not fit: .* killed"),
        (3, RunError, "exit status 3: terminate called"),
    ],
)
def test_a_process_that_ends_is_told_in_one_line(code: int, error: type[Exception], words: str) -> None:
    done = subprocess.CompletedProcess([], code, "", "a warning\nterminate called after throwing\n")
    with pytest.raises(error, match=words) as caught:
        rehearsing._answered(done)
    assert "\n" not in str(caught.value)


def test_a_run_without_room_is_refused_with_one_that_has(here: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["lorica.budget.machine"], "free_memory", lambda device: (20_000, 1_000_000))
    status, _, err = said(capsys, "train", "count.yaml", "--set", "output=runs/none")
    assert status == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "does not fit: the base with what is trained of it, without a single row, takes" in line
    assert "nothing fits" in line
    assert not (here / "runs" / "none" / "adapter").exists()


BAD = {
    "an unknown device": (("plan", "count.yaml", "--fit", "--device", "RTX 3061"), 2, "did you mean"),
    "no memory": (("plan", "count.yaml", "--fit", "--memory", "0"), 2, "no amount of memory"),
    "nothing fits": (("plan", "count.yaml", "--fit", "--memory", "100MB"), 1, "nothing fits .* nearest is"),
    "measured elsewhere": (("plan", "count.yaml", "--measure", "--device", "T4"), 2, "leave --fit, --device"),
    "no file": (("advise", "--data", "rows.jsonl", "--model", "./base"), 2, "rows.jsonl"),
    "no rows": (("advise", "--data", "empty.jsonl", "--model", "./base"), 2, "no rows"),
    "no such task": (("advise", "--data", "train.jsonl", "--model", "./base", "--task", "clasification"), 2, "did you"),
    "no time": (("advise", "--data", "train.jsonl", "--model", "./base", "--hours", "0"), 2, "no time to train"),
    "a recipe in the way": (
        ("advise", "--data", "train.jsonl", "--model", "./base", "--out", "count.yaml"),
        2,
        "is there already",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, here: Path, capsys) -> None:
    words, status, told = BAD[case]
    (here / "empty.jsonl").write_text("")
    found, out, err = said(capsys, *words)
    assert found == status
    assert not out
    assert err.count("\n") == 1
    assert re.search(told, err)


def test_an_advised_recipe_is_planned_and_trained_as_it_is(here: Path, tmp_path: Path, capsys) -> None:
    rows = [{"prompt": f"{n} and one is ", "completion": str(n + 1)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "advised.yaml"
    words = ("advise", "--data", str(tmp_path / "rows.jsonl"), "--model", "embedded", "--out", str(recipe))
    status, out, err = said(capsys, *words)
    assert status == 0, err
    assert recipe.read_text().strip() in out, "what is shown is what is written"
    advised = lorica.advise(str(tmp_path / "rows.jsonl"), "embedded")
    assert lorica.Recipe.load(recipe).to_dict() == {**advised.recipe}
    assert json.loads(json.dumps(advised.to_dict()))["method"] == "LoRA"
    assert api.plan(lorica.Recipe.load(recipe)).warnings == ()
    steps = ("--set", "train.steps=3", "--set", "train.epochs=null", "--set", f"output={tmp_path / 'run'}")
    status, out, err = said(capsys, "train", str(recipe), *steps, "--json")
    assert status == 0, err
    assert "the heaviest micro-batch" in err
    assert json.loads(out)["steps"] == 3


def test_the_best_recipes_are_shown_as_words_to_paste(here: Path, capsys) -> None:
    status, out, err = said(capsys, "plan", "count.yaml", "--fit", "--device", "CPU 8 GB")
    assert status == 0, err
    assert "1. the recipe as it is" in out
    status, out, _ = said(capsys, "plan", "count.yaml", "--fit", "--device", "CPU 8 GB", "--json")
    assert json.loads(out)["choices"][0]["set"] == ""
