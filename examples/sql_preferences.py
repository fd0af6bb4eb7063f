"""Preferences for `recipes/dpo.yaml`: of two queries one answers the question, the other differs from it in one thing.

    python examples/sql_preferences.py 2000 > train.jsonl
    lorica train recipes/dpo.yaml

Each line has a prompt, a chosen and a rejected query, which give different rows on the question's own database.  With a
second word, `test`, the questions are about tables and in phrasings that the others never have.
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from random import Random

from lorica.quickstart.phrasings import Split
from lorica.quickstart.questions import generate


def preferences(count: int, split: Split = "train", seed: int = 0) -> Iterator[dict[str, str]]:
    draw = Random(seed)
    for question in islice((each for each in generate(split, 2 * count, seed) if each.misses), count):
        yield {"prompt": question.prompt, "chosen": question.sql, "rejected": draw.choice(question.misses)}


if __name__ == "__main__":
    count, split = int(sys.argv[1]), "test" if sys.argv[2:] == ["test"] else "train"
    for row in preferences(count, split):
        print(json.dumps(row))
