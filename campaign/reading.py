"""Malformed data files are read, and what comes of it is held against what must.

read = used + dropped, each drop with its place and reason      or one error with file, line and what stands there
"""

from collections.abc import Callable
from pathlib import Path

from campaign.judge import Hang, limited, plain
from campaign.rows import Planted, Read, Refused
from lorica import DataError
from lorica.data import DataConfig, Dataset, load

LIMIT = 10.0
"""Seconds of processor time a file may take."""


class Letters:
    """A token a character, so that nothing but the reading is tried."""

    bos_token_id: int | None = None
    eos_token_id: int | None = 3

    def encode(self, text: str) -> list[int]:
        return [ord(letter) + 4 for letter in text]

    def decode(self, ids: object) -> str:
        return "".join(chr(max(int(each) - 4, 0)) for each in ids)  # type: ignore[attr-defined]


Reader = Callable[[Planted], Dataset]


def read(planted: Planted) -> Dataset:
    return load(DataConfig(train=planted.source, **planted.config), Letters(), limit=2000)[0]


def verdict(planted: Planted, reader: Reader = read) -> str:
    """read, refused, or FAILED with what was wrong."""
    try:
        with limited(LIMIT):
            found = reader(planted)
    except DataError as error:
        return _refusal(planted, str(error))
    except Hang:
        return f"FAILED: took more than {LIMIT} s"
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {error!s:.300}"
    return _rows(planted, found)


def _refusal(planted: Planted, text: str) -> str:
    if not plain(text):
        return f"FAILED: the error is not plain text: {text!r:.300}"
    if isinstance(planted.expected, Read):
        return f"FAILED: {planted.expected} refused: {text[:300]}"
    if planted.expected is None:
        return "refused" if planted.source in text.splitlines()[0] else f"FAILED: names no file: {text[:300]}"
    begin = f"{planted.expected.name}:{planted.expected.line}: " if planted.expected.line else planted.expected.name
    told = [line for line in text.splitlines() if line.startswith(begin)]
    if any(all(word in line for word in planted.expected.words) for line in told):
        return "refused"
    return f"FAILED: {planted.expected} not told in: {text[:500]}"


def _rows(planted: Planted, found: Dataset) -> str:
    if isinstance(planted.expected, Refused):
        return f"FAILED: {planted.expected} was accepted: {found}"
    if found.read != found.used + len(found.dropped):
        return f"FAILED: {found.read} rows are not {found.used} + {len(found.dropped)}"
    if not all(drop.reason and drop.origin.startswith(str(Path(planted.source))) for drop in found.dropped):
        return f"FAILED: a drop without place or reason: {found.dropped}"
    if planted.expected is not None and (found.read, len(found.dropped)) != (
        planted.expected.rows,
        planted.expected.dropped,
    ):
        return f"FAILED: {planted.expected} came out as {found}, dropped {found.dropped[:3]}"
    return "read"
