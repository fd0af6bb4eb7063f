"""SQL: the quickstart's questions about small tables; right is what gives the gold query's rows.

table orchards: landlord text, capacity int, province text
Pick out the landlord from whichever orchards have capacity figures over 30.
-> select landlord from orchards where capacity > 30
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.skill_data.skill import Row, Skill
from lorica.quickstart.databases import same_result
from lorica.quickstart.phrasings import Split
from lorica.quickstart.questions import Question, generate


def rows(split: Split, count: int, seed: int) -> Iterator[Row]:
    for question in generate(split, count, seed):
        yield Row(question.prompt, question.sql, partial(_right, question))


def _right(question: Question, said: str) -> bool:
    return same_result(question.database(), question.sql, said.strip())


SKILL = Skill(
    name="sql",
    says="a question about small tables becomes a query",
    apart="tables, columns, values and phrasings",
    measure="the query is run, its rows compared",
    steps=360,
    rows=rows,
)
