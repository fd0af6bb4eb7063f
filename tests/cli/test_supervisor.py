"""The supervisor of `lorica train`, over processes that end in every way; none of them imports torch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorica.cli import supervisor
from lorica.cli.supervised import SUPERVISED, Note, read
from lorica.cli.supervisor import End, Supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are supervised on Linux alone")

HEAD = """
import json, os, signal, sys, time
sys.path.insert(0, {source!r})
from lorica.cli.supervised import note_of_this_process
note = note_of_this_process()
with open("begun", "a") as file:
    print(json.dumps([note.tokens, "--resume" in sys.argv]), file=file)
def saved(step):
    os.makedirs(f"run/checkpoints/step-{{step:08d}}", exist_ok=True)
def die(number):
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
def smaller(tokens, least=100):
    note.tell(folder="run", tokens=tokens, smaller=max(tokens // 2, least) if tokens > least else None)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(body: str) -> list[str]:
    source = str(Path(supervisor.__file__).parents[2])
    Path("work.py").write_text(HEAD.format(source=source) + body)
    return [sys.executable, "work.py"]


def begun() -> list[list[object]]:
    return [json.loads(line) for line in Path("begun").read_text().splitlines()]


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_a_process_that_ends_by_itself_is_not_retried(
    status: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"smaller(800)\nnote.tell(status={status})\nsys.exit({status})"
    assert Supervisor(command(body)).run() == status
    assert begun() == [[0, False]]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS])
def test_what_native_code_ends_goes_on_from_its_checkpoint_with_half_as_many_tokens(
    number: signal.Signals, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"""
smaller(note.tokens or 800)
if note.tokens != 200:
    saved(3)
    die({number.value})
note.tell(status=0)
"""
    assert Supervisor(command(body)).run() == 0
    assert begun() == [[0, False], [400, True], [200, True]]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"run: ended by {number.name}")
    assert "with 800 tokens at a time at most; going on from step 3 with 400 tokens at a time" in first
    assert "with 200 tokens" in second


def test_its_own_word_is_said_once_and_only_where_nothing_smaller_is_left(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = """
smaller(note.tokens or 200)
note.leave("step 4: out of memory; lower it; what was saved stands")
note.tell(status=1)
sys.exit(1)
"""
    assert Supervisor(command(body)).run() == 1
    assert begun() == [[0, False], [100, True]]
    going_on, error = capsys.readouterr().err.splitlines()
    assert going_on.startswith("step 4: out of memory; going on from the beginning with 100 tokens at a time")
    assert error == "error: step 4: out of memory; lower it; what was saved stands"


@pytest.mark.parametrize(("progress", "times"), [(False, 2), (True, 5)])
def test_a_loop_of_crashes_ends(
    progress: bool,
    times: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A process at its smallest is begun again where it has saved something, and a bounded number of times."""
    monkeypatch.setattr(supervisor, "RESTARTS", 4)
    body = f"""
smaller(100)
count = len(open("begun").readlines())
saved(count if {progress} else 1)
die(signal.SIGSEGV)
"""
    assert Supervisor(command(body)).run() == 1
    assert len(begun()) == times
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: run: ended by SIGSEGV, as happens where memory runs out")
    assert "is saved, lorica train run/recipe.yaml --resume goes on from there; lorica plan RECIPE --fit" in last


def test_a_death_before_the_run_is_known_is_one_line_and_no_loop(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Supervisor(command("die(signal.SIGSEGV)")).run() == 1
    assert Supervisor(command("os._exit(1)")).run() == 1
    assert begun() == [[0, False], [0, False]]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: the run: ended by SIGSEGV")
    assert second.startswith("error: the run: ended by exit status 1")


@pytest.mark.parametrize(("counted", "restarts"), [((5, 6), 2), ((5, 5), 1), ((None, None), 2)])
def test_a_kill_is_memorys_only_where_the_system_counts_one(
    counted: tuple[int | None, ...], restarts: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([*counted, 0, 0])
    monkeypatch.setattr(supervisor, "_kills", lambda: next(answers))
    monkeypatch.setattr(supervisor, "_ended_by", lambda number: 128 + number)
    body = "smaller(note.tokens or 200)\nif not note.tokens: die(signal.SIGKILL)\nnote.tell(status=0)"
    assert Supervisor(command(body)).run() == (0 if restarts == 2 else 128 + signal.SIGKILL)
    assert len(begun()) == restarts


def test_a_note_that_is_not_whole_says_nothing() -> None:
    descriptor = os.memfd_create("note")
    assert read(descriptor) == {}
    Note(descriptor).tell(tokens=100, folder="a long name")
    Note(descriptor).tell(tokens=5)
    assert read(descriptor) == {"tokens": 5}
    os.pwrite(descriptor, b'{"tok', 0)
    os.ftruncate(descriptor, 5)
    assert read(descriptor) == {}
    os.close(descriptor)


WAITING = """
import time
heard = []
signal.signal({number}, lambda *_: heard.append(1))
open("ready", "w").close()
end = time.monotonic() + 20
while not heard and time.monotonic() < end: time.sleep(0.01)
time.sleep(0.4)
note.tell(status=100 + len(heard))
sys.exit(100 + len(heard))
"""


def started(body: str) -> subprocess.Popen[bytes]:
    """A supervisor in a process group of its own, where the system kills nobody for memory."""
    script = f"""
import sys
from lorica.cli import supervisor
supervisor._kills = lambda: 3
sys.exit(supervisor.Supervisor({command(body)!r}).run())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(supervisor.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, process_group=0)
    deadline = time.monotonic() + 20
    while not Path("ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [False, True], ids=["to it alone", "to both"])
def test_a_signal_reaches_the_run_once_whoever_it_was_sent_to(number: signal.Signals, group: bool, here: Path) -> None:
    process = started(WAITING.format(number=number.value))
    (os.killpg if group else os.kill)(process.pid, number)
    assert process.wait(timeout=30) == 101


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_what_somebody_ended_stays_ended_and_its_supervisor_ends_so(number: signal.Signals, here: Path) -> None:
    process = started(f'open("ready", "w").close()\nsmaller(800)\ntime.sleep(0.2)\ndie({number.value})')
    assert process.wait(timeout=30) == -number
    assert len(begun()) == 1


def test_a_run_does_not_outlive_its_supervisor(here: Path) -> None:
    body = 'open("pid", "w").write(str(os.getpid()))\nopen("ready", "w").close()\ntime.sleep(60)'
    process = started(body)
    process.kill()
    process.wait()
    run, deadline = Path("/proc") / Path("pid").read_text(), time.monotonic() + 10
    while _alive(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(run)


def _alive(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_each_restart_is_for_fewer_tokens_or_another_checkpoint() -> None:
    def end(began: int, tokens: int | None, smaller: int | None, saved: int | None = 1) -> End:
        note = {} if tokens is None else {"tokens": tokens, "smaller": smaller}
        return End(-signal.SIGABRT, note, None, saved, 1, began)

    assert end(0, 800, 400).next == 400
    assert end(400, 400, None).next is None
    assert end(400, 400, None, saved=2).next == 400
    assert end(400, 100, None).next == 100, "cut while it ran: a new process has more room"
    assert end(0, None, None).next is None


def test_a_process_without_a_supervisor_keeps_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SUPERVISED, raising=False)
    assert Note().leave("out of memory") is False
