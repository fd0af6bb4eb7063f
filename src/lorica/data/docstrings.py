"""Labelled text that every Python installation has: {text: a docstring's first paragraph, label: its module}.

The label is the top-level module or package of the standard library.  A paragraph counts from four words on; more
than forty are cut off.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lorica.data.problems import Problems
from lorica.data.rows import Row
from lorica.data.sources import SourceFile

FEWEST, MOST = 4, 40
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def docstring_rows(source: SourceFile, problems: Problems) -> Iterator[Row]:
    """A row for each documented class and function of a file, in its order; no paragraph twice."""
    label = source.relative.partition("/")[0].removesuffix(".py")
    for line, text in paragraphs(source.path):
        yield Row({"text": text, "label": label}, f"{source.name}:{line}", source.relative)


@cache
def paragraphs(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, paragraph) of a file; none of one that this Python does not parse."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ()
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            words = (ast.get_docstring(node) or "").split("\n\n")[0].split()
            if len(words) >= FEWEST:
                found.setdefault(" ".join(words[:MOST]), node.lineno)
    return tuple((line, text) for text, line in found.items())
