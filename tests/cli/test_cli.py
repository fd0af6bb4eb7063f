"""The command line before any work: help, wrong words, exit statuses, and what is shown while a run goes on."""

import json
import re

import pytest
import typer

from lorica.cli import entry, output, progress
from lorica.cli.app import COMMANDS, app
from lorica.cli.entry import run
from lorica.errors import DivergedError, ModelError, RecipeError
from lorica.train.records import EvalRecord, StepRecord

ISSUED = ("quickstart", "plan", "train", "eval", "generate", "chat", "inspect", "verify", "merge", "data")


def test_the_commands_are_there_and_help_lists_them_in_the_order_one_needs_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    places = [re.search(rf"^  {name} ", out, re.MULTILINE) for name in ISSUED]
    assert all(places)
    assert [place.start() for place in places if place] == sorted(place.start() for place in places if place)
    assert "..." not in out.partition("Commands:")[2], "every line of the list fits"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    out = capsys.readouterr().out
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert out.startswith(f"Usage: lorica {name}")
    assert all(getattr(option, "help", "x") for option in command.params)
    assert ("--json" in out) == (name != "chat")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("lorica")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "no such command 'trian'"),
        (["train"], "missing argument"),
        (["train", "x.yaml", "--rsume"], "--rsume"),
        (["generate", "a", "--prompt", "b", "--max-tokens", "0"], "--max-tokens"),
        (["generate", "a", "--prompt", "b", "--max-tokens", "many"], "valid integer"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert said in line
    assert "--help)" in line


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (RecipeError.of(["a: wrong", "b: wrong"]), 2, ["error: a: wrong", "error: b: wrong"]),
        (DivergedError("step 3: not finite"), 1, ["error: step 3: not finite"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (MemoryError(), 1, ["error: out of memory; lower train.micro_batch_tokens"]),
        (OSError(5, "Input/output error", "a/b"), 1, ["error: a/b: Input/output error (EIO); check the disk"]),
        (KeyError("shape"), 1, ["error: KeyError: 'shape' (unexpected; LORICA_TRACEBACK=1 shows where)"]),
    ],
)
def test_what_goes_wrong_has_its_exit_status_and_no_traceback(
    error: BaseException,
    status: int,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(**_: object) -> None:
        raise error

    monkeypatch.delenv("LORICA_TRACEBACK", raising=False)
    monkeypatch.setattr(entry, "app", broken)
    assert run([]) == status
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(lines)
    assert all(found.startswith(wanted) for found, wanted in zip(said, lines, strict=True))


def test_whatever_is_said_where_no_memory_is_left_is_for_want_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers' "could not get source code" of a module that there was no room to read."""

    def broken(**_: object) -> None:
        raise ModelError("config.json: could not get source code")

    monkeypatch.setattr(entry, "app", broken)
    assert run([]) == 2
    monkeypatch.setattr(entry, "SPARE", 1 << 46)
    assert run([]) == 1
    plain, short = capsys.readouterr().err.splitlines()
    assert plain == "error: config.json: could not get source code"
    assert short.startswith("error: out of memory (config.json: could not get source code); lower")


class Pair:
    def to_dict(self) -> dict[str, float]:
        return {"loss": 0.5}

    def __str__(self) -> str:
        return "loss 0.5"


def test_results_are_text_for_people_and_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(Pair(), as_json=False)
    assert capsys.readouterr().out == "loss 0.5\n"
    output.show(Pair(), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"loss": 0.5}


def step(number: int) -> StepRecord:
    return StepRecord(
        step=number,
        epoch=0.5,
        loss=1.25,
        tokens=512,
        label_tokens=200,
        learning_rate=1e-3,
        grad_norm=1.0,
        seconds=0.1,
        tokens_per_second=5120.0,
        memory_bytes=1_200_000_000,
    )


EVALUATED = EvalRecord(step=2, epoch=1.0, eval_loss=0.75, metrics={}, best=True)


def test_away_from_a_terminal_progress_is_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.live() as reporter:
        reporter.on_plan(2, 0, 1.0)
        for number in (1, 2):
            reporter.on_step(step(number))
        reporter.on_eval(EVALUATED)
        reporter.on_note("memory runs low")
    out, err = capsys.readouterr()
    assert out == ""
    first, *_, last, evaluated, note = err.splitlines()
    assert first == "2 steps, 1 passes over the data"
    assert last.startswith("step 2/2  loss 1.250  5,120 tokens/s  1.20 GB  0:00 left")
    assert evaluated == "step 2: eval_loss 0.7500 (best)"
    assert note == "memory runs low"


def test_on_a_terminal_one_bar_shows_loss_speed_memory_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.live() as reporter:
        reporter.on_plan(4, 1, 1.0)
        reporter.on_step(step(2))
        reporter.on_eval(EVALUATED)
    shown = screen.getvalue()
    assert "eval_loss 0.7500" in shown
    assert "2/4" in shown
    assert "loss 1.250  5,120 tokens/s  1.20 GB" in shown


@pytest.mark.parametrize(("seconds", "said"), [(7, "0:07"), (750, "12:30"), (11100, "3:05:00")])
def test_durations_are_read_at_a_glance(seconds: float, said: str) -> None:
    assert progress.duration(seconds) == said
