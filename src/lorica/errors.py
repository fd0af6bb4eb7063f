"""Every error a user can meet, with the exit status the command line gives it.

LoricaError (ValueError)
├── RequestError        the request is wrong                       exit 2
│   ├── RecipeError     a recipe or a config
│   ├── DataError       a data file
│   ├── ModelError      a base that cannot be loaded or used
│   ├── TargetError     targets, ranks or edits that do not fit the base
│   └── UnknownAdapterError  a name that no adapter is served under
├── AdapterError        a damaged adapter, or one for another base  exit 1
└── RunError            the work itself failed                      exit 1
    ├── DivergedError   a loss or gradient is not finite
    ├── NoRoomError     memory ran out, and nothing smaller can be tried
    ├── CheckpointError a checkpoint cannot be written or read
    └── QueueFullError  more requests wait than may; later there is room
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

LONGEST_LINE = 1000


class LoricaError(ValueError):
    """One line a problem: what, where, and the remedy.

    What errors quote comes from files of others: nothing in it can move a terminal's cursor, begin a line, or fill
    the screen.
    """

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__("\n".join(map(_plain, message.split("\n"))))

    @classmethod
    def of(cls, problems: Sequence[str]) -> "LoricaError":
        """One error that reports every problem of an input, each on its own line."""
        return cls("\n".join(problem.replace("\n", "\\n") for problem in problems))


class RequestError(LoricaError):
    exit_status = 2


class RecipeError(RequestError):
    pass


class DataError(RequestError):
    pass


class ModelError(RequestError):
    pass


class TargetError(RequestError):
    pass


class UnknownAdapterError(RequestError):
    pass


class AdapterError(LoricaError):
    pass


class RunError(LoricaError):
    pass


class DivergedError(RunError):
    pass


class NoRoomError(RunError):
    pass


class CheckpointError(RunError):
    pass


class QueueFullError(RunError):
    pass


ROUNDING = "which changes rounding alone"
WHAT_FITS = "lorica plan RECIPE --fit shows what fits"
OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "annot allocate memory",  # the system, through Python, torch or Rust
    "bad_alloc",
    "could not create a primitive(?! desc)",  # oneDNN; of a descriptor: it has no such primitive
    "could not create a memory",
    "could not execute a primitive",
    "can't start new thread",
    "failed to map segment",  # a library that is loaded
    "without exception set",  # CPython, where there was no room for the exception
    "without setting an exception",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What libraries say of an allocation that failed, in errors of all types; patterns."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in this error or in one that it came of: Python's, a library's or a device's."""
    if isinstance(error, MemoryError | NoRoomError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if re.search("|".join(OUT_OF_MEMORY), str(error)):
        return True
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return before is not None and is_out_of_memory(before)


def how_memory_ran_out(error: BaseException) -> str:
    """`out of memory`, and the words of the error where they do not say so themselves."""
    words = " ".join(str(error).split())[:100]
    plain = isinstance(error, MemoryError) or "memory" in words
    return "out of memory" if plain or not words else f"out of memory ({words})"


def _plain(line: str) -> str:
    if not line.isprintable():
        line = "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in line)
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


class FieldErrors(Protocol):
    """pydantic's ValidationError, which this file does without."""

    def errors(self) -> Sequence[Mapping[str, Any]]: ...


def by_field(error: FieldErrors, under: str = "") -> list[str]:
    """`field.part: what is wrong`, a line a problem; `under` stands before the fields."""
    return [
        f"{'.'.join(map(str, (*([under] if under else []), *each['loc'])))}: {each['msg']}" for each in error.errors()
    ]


def did_you_mean(name: str, known: Iterable[str], count: int = 1) -> str:
    """`"; did you mean 'q_proj'?"` for a near miss, otherwise an empty string."""
    near = get_close_matches(name, [word for word in known if word != name], n=count, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(word) for word in near)}?" if near else ""
