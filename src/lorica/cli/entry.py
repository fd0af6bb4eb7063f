"""The entry of `lorica`: runs a command, and turns what went wrong into one line and an exit status.

0 done    1 the work failed    2 the request was wrong    130 interrupted, after saving
"""

import errno
import gc
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from lorica.cli.app import app
from lorica.cli.output import complain, say
from lorica.cli.supervised import Note, note_of_this_process
from lorica.cli.supervisor import Supervisor, supervised_command
from lorica.durable import complaint
from lorica.errors import WHAT_FITS, LoricaError, NoRoomError, did_you_mean, how_memory_ran_out, is_out_of_memory

INTERRUPTED = 130
REMEDY = f"lower train.micro_batch_tokens, or set train.gradient_checkpointing to true ({WHAT_FITS})"
SPARE = 1 << 25
SPINS = ("GOMP_SPINCOUNT", "10000")
"""How often a thread of torch looks for work before it sleeps; GNU OpenMP's own is 300,000, and with one other busy
process on two cores a training step then took 20 s where it takes 3 with this."""
UNCOLLECTED = 10_000
"""Objects that are made before Python looks for cycles among them.  At its own 700 or so, importing torch and
transformers took 5.0 s, of which a tenth went into a thousand looks that found nothing."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
WRONG_USE: type[Exception] = typer.BadParameter.__mro__[1]
"""The error of options and arguments that do not parse, which typer has no name of its own for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Never returns; `arguments` without the program's name."""
    note = note_of_this_process()
    command = None if note is not None or arguments is not None else supervised_command()
    if command is not None:
        sys.exit(Supervisor(command).run())
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_flushed(run(words)) if note is None else _noted(words, note))


def _noted(words: Sequence[str], note: Note) -> int:
    """The status, which the supervisor is told, unless there is no room even for that."""
    try:
        status = _flushed(run(words, note))
    except BaseException as error:
        if not _ran_out(error):
            note.tell(status=1)
        raise
    note.tell(status=status)
    if "no_room" in note.said:
        os._exit(status)  # libraries' own exit handlers would have no room either, and say so with tracebacks
    return status


def run(arguments: Sequence[str], note: Note | None = None) -> int:
    """The exit status of one command; `note` is for the supervisor of its process."""
    note = note or Note()
    gc.set_threshold(UNCOLLECTED, *gc.get_threshold()[1:])
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*SPINS)  # read when torch is loaded, which no command has done yet
    try:
        return int(app(args=list(arguments), prog_name="lorica", standalone_mode=False, obj=note) or 0)
    except WRONG_USE as error:
        complain(_wrong_use(error))
        return 2
    except LoricaError as error:
        if _ran_out(error):
            return _no_room(error, note)
        complain(str(error))
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (stays open: Python flushes it when it ends)
        return 1
    except Exception as error:
        if _ran_out(error) and not os.environ.get("LORICA_TRACEBACK"):
            return _no_room(error, note)
        return _refused(error) if isinstance(error, OSError) else _unexpected(error)


def _wrong_use(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "lorica"
    message = getattr(error, "format_message", lambda: str(error))().rstrip(".")
    return f"{command}: {message[:1].lower()}{message[1:]}{_nearest(message, context)} ({command} --help)"


def _nearest(message: str, context: object) -> str:
    commands = getattr(getattr(context, "command", None), "commands", {})
    if "No such command" not in message or "Did you mean" in message:
        return ""
    return did_you_mean(message.split("'")[1], commands)


def _refused(error: OSError) -> int:
    """The system refused something, and no room below knew what it was for."""
    if error.filename is None and error.errno in FULL:
        return _unsaid(error)
    if error.filename is None or os.environ.get("LORICA_TRACEBACK"):
        return _unexpected(error)
    complain(complaint(Path(os.fsdecode(error.filename)), error))
    return 1


def _ran_out(error: BaseException) -> bool:
    """Whether memory ran out: libraries also fail in other words where little is left of what the system gives."""
    try:
        mmap.mmap(-1, SPARE).close()
    except OSError:
        return True
    return is_out_of_memory(error)


def _no_room(error: Exception, note: Note) -> int:
    where = f"{note.said['folder']}: " if "folder" in note.said else ""
    line = str(error) if isinstance(error, NoRoomError) else f"{where}{how_memory_ran_out(error)}; {REMEDY}"
    if not note.leave(line):
        complain(line)
    return 1


def _unexpected(error: Exception) -> int:
    if os.environ.get("LORICA_TRACEBACK"):
        raise error
    reason = " ".join(str(error).split())[:300]
    complain(f"{type(error).__name__}: {reason} (unexpected; LORICA_TRACEBACK=1 shows where)")
    return 1


def _flushed(status: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _mute()
    except OSError as error:
        return _unsaid(error)
    return status


def _unsaid(error: OSError) -> int:
    """Our files are written through `durable`, which names them: a full disk without a name is that of stdout."""
    complain(f"stdout: {error.strerror}; what was to be said there is lost")
    _mute()
    return 1


def _mute() -> None:
    """What stdout still holds goes nowhere, rather than fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
