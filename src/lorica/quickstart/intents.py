"""What a question asks, apart from its wording: it becomes gold SQL, and its near misses become wrong SQL.

select landlord from harbors where depth > 30 and parish = 'oslo'
select parish, avg( depth ) from harbors group by parish
select parcel from boats join harbors using ( harbor_id ) where depth > 30
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from lorica.quickstart.grammar import Shape
from lorica.quickstart.phrasings import AGGREGATES, DIRECTIONS, OPERATORS
from lorica.quickstart.schema import Cell, Column, Schema, Table
from lorica.quickstart.words import spoken

Kind = Literal["filter", "aggregate", "order", "group", "join"]
SIGNS = {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "=", "text": "="}


@dataclass(frozen=True)
class Condition:
    column: Column
    operator: str
    value: Cell

    def __str__(self) -> str:
        return f"{self.column.name} {SIGNS[self.operator]} {quoted(self.value)}"


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One query: `column` is shown, or None for all; `function` of `measured`, or the count where that is None."""

    kind: Kind
    schema: Schema
    column: Column | None = None
    function: str = ""
    measured: Column | None = None
    conditions: tuple[Condition, ...] = ()
    direction: str = ""
    limit: int = 0

    @property
    def table(self) -> Table:
        return self.schema.tables[0]

    @property
    def sql(self) -> str:
        return f"select {self._shown} from {self._source}{self._where}{self._tail}"

    @property
    def shape(self) -> Shape:
        operators = tuple(condition.operator for condition in self.conditions)
        some = "some" if operators else "none"
        what = "col" if self.column else "all"
        match self.kind:
            case "filter":
                return Shape(f"filter.{what}", (), operators)
            case "aggregate":
                return Shape("aggregate" if self.measured else "count", (some, self.function), operators)
            case "order":
                return Shape(f"order.{'one' if self.limit == 1 else 'many'}.{what}", (self.direction,))
            case "group":
                return Shape("group.agg" if self.measured else "group.count", (self.function,))
            case "join":
                return Shape("join", (), operators)

    def slots(self, number: Callable[[int], str]) -> dict[str, str]:
        """What the slots of a phrasing stand for; `number` writes the limit."""
        shown = spoken(self.column.name) if self.column else ""
        slots = {"t": self.table.name, "u": self.schema.tables[-1].name, "p": shown, "g": shown}
        slots |= {"a": spoken(self.measured.name) if self.measured else "", "n": number(self.limit)}
        for k, condition in enumerate(self.conditions):
            slots |= {f"c{k}": spoken(condition.column.name), f"v{k}": quoted(condition.value)}
        return slots

    @property
    def _applied(self) -> str:
        return f"{self.function}( {self.measured.name} )" if self.measured else "count(*)"

    @property
    def _shown(self) -> str:
        match self.kind:
            case "aggregate":
                return self._applied
            case "group" if self.column:
                return f"{self.column.name}, {self._applied}"
            case _:
                return self.column.name if self.column else "*"

    @property
    def _source(self) -> str:
        names = [table.name for table in self.schema.tables]
        return f"{names[0]} join {names[1]} using ( {self.schema.key} )" if self.kind == "join" else names[0]

    @property
    def _where(self) -> str:
        return " where " + " and ".join(map(str, self.conditions)) if self.conditions else ""

    @property
    def _tail(self) -> str:
        if self.kind == "group" and self.column:
            return f" group by {self.column.name}"
        if self.kind == "order" and self.measured:
            return f" order by {self.measured.name} {self.direction} limit {self.limit}"
        return ""


def quoted(value: Cell) -> str:
    return str(value) if isinstance(value, int) else f"'{value}'"


def draw_intent(kind: Kind, schema: Schema, rng: Random) -> Intent:
    """A random query of a kind over a schema."""
    return _DRAWS[kind](schema, rng)


def _filter(schema: Schema, rng: Random) -> Intent:
    table = schema.tables[0]
    conditions = _conditions(table, rng, rng.choice((1, 1, 1, 2)))
    used = {condition.column for condition in conditions}
    shown = [column for column in table.columns if column not in used]
    column = rng.choice(shown) if shown and rng.random() < 0.55 else None
    return Intent(kind="filter", schema=schema, column=column, conditions=conditions)


def _aggregate(schema: Schema, rng: Random) -> Intent:
    table = schema.tables[0]
    function = rng.choice(("count", *AGGREGATES))
    measured = None if function == "count" else rng.choice(table.of_type("int"))
    conditions = _conditions(table, rng, rng.choice((0, 1, 1)), without=measured)
    return Intent(kind="aggregate", schema=schema, function=function, measured=measured, conditions=conditions)


def _order(schema: Schema, rng: Random) -> Intent:
    table = schema.tables[0]
    measured = rng.choice(table.of_type("int"))
    shown = [column for column in table.columns if column != measured]
    column = rng.choice(shown) if rng.random() < 0.6 else None
    limit = 1 if rng.random() < 0.4 else rng.randint(2, 6)
    direction = rng.choice(DIRECTIONS)
    return Intent(kind="order", schema=schema, column=column, measured=measured, direction=direction, limit=limit)


def _group(schema: Schema, rng: Random) -> Intent:
    table = schema.tables[0]
    function = rng.choice(("count", "count", *AGGREGATES))
    measured = None if function == "count" else rng.choice(table.of_type("int"))
    column = rng.choice(table.of_type("text"))
    return Intent(kind="group", schema=schema, column=column, function=function, measured=measured)


def _join(schema: Schema, rng: Random) -> Intent:
    child, parent = schema.tables
    column = rng.choice(child.of_type("text") + child.of_type("int"))
    return Intent(kind="join", schema=schema, column=column, conditions=_conditions(parent, rng, 1))


_DRAWS: dict[Kind, Callable[[Schema, Random], Intent]] = {
    "filter": _filter,
    "aggregate": _aggregate,
    "order": _order,
    "group": _group,
    "join": _join,
}


def _conditions(table: Table, rng: Random, count: int, without: Column | None = None) -> tuple[Condition, ...]:
    columns = [column for column in table.of_type("int") + table.of_type("text") if column != without]
    return tuple(_condition(table, column, rng) for column in rng.sample(columns, min(count, len(columns))))


def _condition(table: Table, column: Column, rng: Random) -> Condition:
    operator = "text" if column.type == "text" else rng.choice(OPERATORS[:-1])
    return Condition(column, operator, rng.choice(table.values(column)))


def near_misses(intent: Intent) -> Iterator[str]:
    """SQL that differs from the gold query in a single column, operator, function, direction or limit."""
    yield from (other.sql for other in _near_intents(intent))
    if intent.kind == "group" and intent.column:
        for other in intent.table.of_type("text"):
            if other != intent.column:
                yield intent.sql.replace(f"group by {intent.column.name}", f"group by {other.name}")


def _near_intents(intent: Intent) -> Iterator[Intent]:
    yield from _other_columns(intent)
    yield from _other_conditions(intent)
    if intent.kind in ("aggregate", "group") and intent.measured:
        yield from (replace(intent, function=other) for other in AGGREGATES if other != intent.function)
        yield replace(intent, function="count", measured=None)
    if intent.direction:
        yield replace(intent, direction="asc" if intent.direction == "desc" else "desc")
        yield replace(intent, limit=intent.limit + 1)


def _other_columns(intent: Intent) -> Iterator[Intent]:
    if intent.column and intent.kind in ("filter", "order"):
        yield replace(intent, column=None)
    for other in intent.table.columns:
        if intent.column and other != intent.column and not other.name.endswith("_id"):
            yield replace(intent, column=other)
        if intent.measured and other in intent.table.of_type("int") and other != intent.measured:
            yield replace(intent, measured=other)


def _other_conditions(intent: Intent) -> Iterator[Intent]:
    table = intent.schema.tables[-1]
    for k, condition in enumerate(intent.conditions):
        others = [replace(condition, column=column) for column in table.of_type(condition.column.type)]
        if condition.operator != "text":
            others += [replace(condition, operator=operator) for operator in OPERATORS[:-1]]
        for other in others:
            if other != condition:
                yield replace(intent, conditions=(*intent.conditions[:k], other, *intent.conditions[k + 1 :]))
        if intent.kind != "join":
            yield replace(intent, conditions=intent.conditions[:k] + intent.conditions[k + 1 :])
