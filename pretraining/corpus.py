"""The text the embedded base learns from: what every Python installation has, and generated plain language.

    standard library    every .py file outside its test suites, whole
    plain language      tables, lists and dates in words (lorica.quickstart.plain)

A file whose words hold a phrasing that the quickstart keeps for its test is left out.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lorica.quickstart.phrasings import contains_held_out
from lorica.quickstart.plain import plain_text
from lorica.quickstart.words import Spelling

SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__", "turtledemo", "ensurepip"}
HELD_OUT_SHARE = 50
"""One document in fifty is never trained on; the model card states the loss on them."""


def standard_library() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if text.strip() and not contains_held_out(text):
                yield text


def documents(seed: int, plain_characters: int, spelling: Spelling) -> tuple[list[str], list[str]]:
    """(standard library, plain language), in a fixed order."""
    return list(standard_library()), list(plain_text(seed, plain_characters, spelling))


def is_held_out(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def corpus_hash(texts: list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()
