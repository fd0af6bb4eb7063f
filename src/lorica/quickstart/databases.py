"""Small SQLite databases in memory, and the judgement whether a predicted query gives the gold query's result.

Predicted SQL comes from a model and may be anything: it runs read-only under an authoriser that allows a SELECT and
nothing else, within a bound on the machine's steps; whatever goes wrong makes it a wrong answer.
"""

import sqlite3
from collections import Counter

from lorica.quickstart.schema import Schema

Rows = list[tuple[object, ...]]

MAX_ROWS = 2_000
STEPS_BETWEEN_CHECKS = 1_000
MAX_CHECKS = 200
_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)


def build(schema: Schema) -> sqlite3.Connection:
    """The schema's tables and rows in memory; afterwards the connection only reads."""
    connection = sqlite3.connect(":memory:")
    for table in schema.tables:
        columns = ", ".join(f'"{column.name}" {column.type}' for column in table.columns)
        connection.execute(f'create table "{table.name}" ({columns})')
        marks = ", ".join("?" * len(table.columns))
        connection.executemany(f'insert into "{table.name}" values ({marks})', table.rows)
    connection.commit()
    connection.set_authorizer(_allow)
    return connection


def same_result(connection: sqlite3.Connection, gold: str, predicted: str) -> bool:
    """Whether both queries give the same rows: in order where the gold query orders them, else in any order."""
    return same_rows(gold, rows_of(connection, gold), rows_of(connection, predicted))


def same_rows(gold: str, expected: Rows | None, found: Rows | None) -> bool:
    if expected is None or found is None:
        return False
    if " order by " in gold.lower():
        return expected == found
    return Counter(expected) == Counter(found)


def rows_of(connection: sqlite3.Connection, sql: str) -> Rows | None:
    """The rows of one SELECT, or None where it fails, runs too long, returns too much or is not a single SELECT."""
    if not sql.lstrip().lower().startswith("select"):
        return None
    checks = iter(range(MAX_CHECKS))
    connection.set_progress_handler(lambda: next(checks, None) is None, STEPS_BETWEEN_CHECKS)
    try:
        rows = connection.execute(sql).fetchmany(MAX_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, UnicodeError):
        return None
    finally:
        connection.set_progress_handler(None, 0)
    return rows if len(rows) <= MAX_ROWS else None


def _allow(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY
