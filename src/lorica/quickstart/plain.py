"""Plain-language text for pretraining: tables, lists, dates and questions about them, with no SQL anywhere.

    table pilots: captain text, birth_year int
    give me the captain of pilots whose birth year is above 1960.
    in other words: go through pilots, keep rows with birth_year greater than 1960, give captain.

A base that has read it can copy names it has never seen and knows what comparatives, superlatives and aggregates mean.
Names and phrasings are those of the training split, and no document holds a four-word sequence of a held-out phrasing.
"""

import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from lorica.quickstart.grammar import Shape
from lorica.quickstart.intents import Condition, Intent, draw_intent, quoted
from lorica.quickstart.phrasings import (
    TRAINING,
    contains_held_out,
    draw,
    held_out_sequences,
    mask_names,
    sequences,
)
from lorica.quickstart.questions import KINDS, worded
from lorica.quickstart.schema import Cell, Column, Schema, Table, joined, single
from lorica.quickstart.words import Spelling, Vocabulary, spoken, vocabulary

_ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Names:
    """The names a document is about, for masking."""

    tables: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()

    @classmethod
    def of(cls, schema: Schema) -> "Names":
        columns = {column.name for table in schema.tables for column in table.columns}
        values = {cell for table in schema.tables for row in table.rows for cell in row if isinstance(cell, str)}
        tables = frozenset(table.name for table in schema.tables)
        return cls(tables, frozenset(columns | set(map(spoken, columns))), frozenset(values))

    @classmethod
    def held_out(cls) -> "Names":
        """The names of the test split, for text that was not generated."""
        words = vocabulary("test")
        columns = frozenset((*words.numbers, *words.texts))
        return cls(frozenset(words.tables), columns | frozenset(map(spoken, columns)), frozenset(words.values))

    def mask(self, text: str) -> str:
        return mask_names(text, self.tables, self.columns, self.values)


def plain_text(seed: int, characters: int, spelling: Spelling = "syllables") -> Iterator[str]:
    """Documents of about `characters` characters in all, the same ones for the same seed."""
    written = 0
    for text, _ in documents(seed, spelling):
        yield text
        written += len(text)
        if written >= characters:
            return


def held_out_in(text: str) -> set[tuple[str, ...]]:
    """The sequences of held-out phrasings in a text from elsewhere, its numbers and the test names masked."""
    return sequences(Names.held_out().mask(text)) & held_out_sequences()


def documents(seed: int, spelling: Spelling = "syllables") -> Iterator[tuple[str, Names]]:
    """Documents without end, each with the names that are masked in it."""
    rng = Random(f"plain/{seed}")
    words = replace(vocabulary("train", spelling), invented=0.7 if spelling == "syllables" else 0.8)
    writers, weights = zip(*_WRITERS, strict=True)
    while True:
        lines, names = rng.choices(writers, weights)[0](words, rng)
        text = "\n".join(line for line in lines if not contains_held_out(names.mask(line)))
        if text and not contains_held_out(names.mask(text)):
            yield text + "\n", names


def _readings(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """A schema and questions about it, each with what it means in one fixed style."""
    schema, kinds = _schema(words, rng)
    style = rng.choice(_STYLES)
    lines = [str(schema)]
    for _ in range(rng.randint(2, 5)):
        intent = draw_intent(rng.choice(kinds), schema, rng)
        lines += [_question(intent, rng), style(intent)]
    return lines, Names.of(schema)


def _rephrasings(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """One question in several wordings, and what all of them mean."""
    schema, kinds = _schema(words, rng)
    intent = draw_intent(rng.choice(kinds), schema, rng)
    joint = rng.choice(("or: ", "that is: ", "the same question: ", "put differently: ", "- ", ""))
    lines = [str(schema), _question(intent, rng)]
    lines += [joint + _question(intent, rng) for _ in range(rng.randint(1, 4))]
    return [*lines, rng.choice(_STYLES)(intent)], Names.of(schema)


def _schema(words: Vocabulary, rng: Random) -> tuple[Schema, tuple]:
    if rng.random() < 0.2:
        return joined(words, rng), ("join",)
    return single(words, rng), KINDS[:-1]


def _question(intent: Intent, rng: Random) -> str:
    return worded(draw("train", intent.shape, rng, TRAINING), intent, "train", rng)


_COMPARISONS = {
    "gt": "greater than",
    "lt": "less than",
    "ge": "at least",
    "le": "at most",
    "eq": "exactly",
    "text": "exactly",
}
_FUNCTIONS = {"avg": "average", "sum": "sum", "max": "maximum", "min": "minimum", "count": "number of rows"}


def _condition(condition: Condition) -> str:
    return f"{condition.column.name} {_COMPARISONS[condition.operator]} {quoted(condition.value)}"


def _conditions(intent: Intent) -> str:
    return " together with ".join(map(_condition, intent.conditions))


def _wanted(intent: Intent) -> str:
    """What is asked for, such as "captain", "average of depth" or "parish with average of depth"."""
    applied = _FUNCTIONS.get(intent.function, "")
    if intent.measured and applied:
        applied += f" of {intent.measured.name}"
    if intent.kind == "group" and intent.column:
        return f"{intent.column.name} with {applied}"
    return applied or (intent.column.name if intent.column else "everything")


def _source(intent: Intent) -> str:
    names = [table.name for table in intent.schema.tables]
    return f"{names[0]} matched with {names[1]} on {intent.schema.key}" if intent.kind == "join" else names[0]


def _as_fields(intent: Intent) -> str:
    parts = [f"wanted: {_wanted(intent)}", f"table: {_source(intent)}"]
    if intent.conditions:
        parts.append(f"keep: {_conditions(intent)}")
    if intent.kind == "group" and intent.column:
        parts.append(f"groups: {intent.column.name}")
    if intent.kind == "order" and intent.measured:
        largest = "largest" if intent.direction == "desc" else "smallest"
        parts.append(f"sorting: {intent.measured.name} {largest} first; rows: {intent.limit}")
    return "; ".join(parts) + "."


def _as_sentence(intent: Intent) -> str:
    text = f"in other words: give {_wanted(intent)}, using {_source(intent)}"
    if intent.conditions:
        text += f", for rows with {_conditions(intent)}"
    if intent.kind == "group" and intent.column:
        text += f", one line for each {intent.column.name}"
    if intent.kind == "order" and intent.measured:
        side = "highest" if intent.direction == "desc" else "lowest"
        text += f", sorted by {intent.measured.name}, {side} first, stopping at {intent.limit}"
    return text + "."


def _as_steps(intent: Intent) -> str:
    steps = [f"open {_source(intent)}"]
    if intent.conditions:
        steps.append(f"keep rows with {_conditions(intent)}")
    if intent.kind == "group" and intent.column:
        steps.append(f"make groups by {intent.column.name}")
    if intent.kind == "order" and intent.measured:
        down = "downwards" if intent.direction == "desc" else "upwards"
        steps.append(f"sort {down} by {intent.measured.name}, take {intent.limit}")
    return f"steps: {'; '.join(steps)}; give {_wanted(intent)}."


def _as_result(intent: Intent) -> str:
    """The wanted part alone, then the conditions: the shortest restatement."""
    text = f"{_wanted(intent)} ( {_source(intent)} )"
    if intent.conditions:
        text += f" [ {_conditions(intent)} ]"
    if intent.kind == "order" and intent.measured:
        text += f" [ {intent.measured.name} {'falling' if intent.direction == 'desc' else 'rising'}, {intent.limit} ]"
    return "= " + text


_STYLES: tuple[Callable[[Intent], str], ...] = (_as_fields, _as_fields, _as_sentence, _as_steps, _as_result)


def _rows(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """A table with its rows written out, and facts that can be read off them."""
    table = single(words, rng).tables[0]
    table = replace(table, rows=table.rows[: rng.randint(3, 8)])
    lines = [str(table), *rng.choice((_bullets, _commas, _sentences))(table)]
    facts = [_lookup, _lookup, _sorted, _extreme, _counted, _matching, _summary, _averaged]
    lines += [rng.choice(facts)(table, rng) for _ in range(rng.randint(2, 6))]
    return lines, Names.of(Schema((table,)))


def _bullets(table: Table) -> Iterator[str]:
    for row in table.rows:
        pairs = zip(table.columns, row, strict=True)
        yield "- " + ", ".join(f"{spoken(column.name)}: {cell}" for column, cell in pairs)


def _commas(table: Table) -> Iterator[str]:
    yield from (" | ".join(map(str, row)) for row in ([column.name for column in table.columns], *table.rows))


def _sentences(table: Table) -> Iterator[str]:
    for ordinal, row in zip(_ORDINALS, table.rows, strict=False):
        pairs = [f"{spoken(column.name)} {cell}" for column, cell in zip(table.columns, row, strict=True)]
        yield f"The {ordinal} of the {table.name} has {', '.join(pairs[:-1])} and {pairs[-1]}."


def _lookup(table: Table, rng: Random) -> str:
    place = rng.randrange(len(table.rows))
    at = rng.randrange(len(table.columns))
    return f"{_ORDINALS[place]} row, {spoken(table.columns[at].name)}: {table.rows[place][at]}."


def _sorted(table: Table, rng: Random) -> str:
    column = rng.choice(table.of_type("int"))
    falling = rng.random() < 0.5
    cells = sorted(table.values(column), reverse=falling)
    way = rng.choice(("largest first", "falling", "downwards") if falling else ("smallest first", "rising", "upwards"))
    count = rng.randint(1, len(cells))
    shown = ", ".join(map(str, cells[:count]))
    return f"{spoken(column.name)} of {table.name}, {way}, {count} of {len(cells)}: {shown}."


def _extreme(table: Table, rng: Random) -> str:
    column, other = rng.choice(table.of_type("int")), rng.choice(table.columns)
    largest = rng.random() < 0.5
    place = table.columns.index(column)
    row = (max if largest else min)(table.rows, key=lambda cells: cells[place])
    word = rng.choice(("highest", "largest", "greatest", "maximum") if largest else ("lowest", "smallest", "minimum"))
    return (
        f"The {word} {spoken(column.name)} in {table.name} is {row[place]}; "
        f"that row has {spoken(other.name)} {row[table.columns.index(other)]}."
    )


def _counted(table: Table, rng: Random) -> str:
    column = rng.choice(table.of_type("int"))
    cells = table.values(column)
    bound = rng.choice(cells)
    above = sum(cell > bound for cell in cells if isinstance(cell, int) and isinstance(bound, int))
    return (
        f"Of {len(cells)} {table.name}, {above} have {spoken(column.name)} greater than {bound}, "
        f"and {len(cells) - above} do not."
    )


def _matching(table: Table, rng: Random) -> str:
    column, other = rng.choice(table.of_type("text")), rng.choice(table.columns)
    value = rng.choice(table.values(column))
    found = [str(row[table.columns.index(other)]) for row in table.rows if row[table.columns.index(column)] == value]
    return f"{spoken(other.name)} where {spoken(column.name)} says {value}: {', '.join(found)}."


def _summary(table: Table, rng: Random) -> str:
    column = rng.choice(table.of_type("text"))
    counts = Counter(table.values(column))
    parts = ", ".join(f"{value} {count}" for value, count in counts.items())
    return f"{table.name} counted for each {spoken(column.name)}: {parts}."


def _averaged(table: Table, rng: Random) -> str:
    column = rng.choice(table.of_type("int"))
    cells = [cell for cell in table.values(column) if isinstance(cell, int)]
    total = sum(cells)
    return (
        f"{spoken(column.name)}: {' + '.join(map(str, cells))} makes a sum of {total}, "
        f"so the average (or mean) is {total / len(cells):.1f}."
    )


def _comparisons(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """What one comparative means, by example."""
    column, lines = words.number_column(rng), []
    for _ in range(rng.randint(3, 7)):
        operator = rng.choice(("gt", "lt", "ge", "le", "eq"))
        bound = rng.randint(3, 120)
        phrase = _bounded("bare", operator, column, bound, rng)
        yes, no = _examples(operator, bound)
        lines.append(
            f"{phrase}: this means {_COMPARISONS[operator]} {bound}. "
            f"{yes} fits, {no} does not, and {bound} itself {'fits' if operator in ('ge', 'le', 'eq') else 'does not'}."
        )
        other = _bounded(rng.choice(("bare", "clause", "phrase")), operator, column, bound, rng)
        lines.append(f"so '{phrase}' says the same as '{other}'.")
    return lines, Names(columns=frozenset((column, spoken(column))))


def _bounded(symbol: str, operator: str, column: str, bound: int, rng: Random) -> str:
    return TRAINING.draw(Shape(symbol, (operator,)), rng).replace("{c}", spoken(column)).replace("{v}", str(bound))


def _examples(operator: str, bound: int) -> tuple[int, int]:
    above, below = bound + 1, bound - 1
    return {"gt": (above, below), "ge": (above, below), "lt": (below, above), "le": (below, above)}.get(
        operator, (bound, above)
    )


def _lists(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """A list, said again in other orders."""
    values = [words.value(rng) for _ in range(rng.randint(3, 7))]
    shuffled = rng.sample(values, len(values))
    place = rng.randrange(len(values))
    lines = [
        f"list: {', '.join(values)}",
        f"again: {', '.join(values)}",
        f"backwards: {', '.join(reversed(values))}",
        f"sorted by letter: {', '.join(sorted(values))}",
        f"mixed: {', '.join(shuffled)}",
        f"in quotes: {', '.join(map(quoted, values))}",
        f"number {place + 1} is {values[place]}, the last is {values[-1]}, the first is {values[0]}",
        f"after {values[place - 1]} comes {values[place]}" if place else f"{values[0]} has nothing in front of it",
        f"there are {len(values)} words in the list",
    ]
    start = lines[:1]
    return start + rng.sample(lines[1:], rng.randint(3, 7)), Names(values=frozenset(values))


def _spellings(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """Columns as they are spoken and as they are spelled."""
    columns = [_two_part(words, rng) for _ in range(rng.randint(3, 6))]
    again = rng.sample(columns, len(columns))
    lines = ["columns: " + ", ".join(columns), *(f"{spoken(name)} is spelled {name}" for name in again)]
    return lines, Names(columns=frozenset(columns) | frozenset(map(spoken, columns)))


def _two_part(words: Vocabulary, rng: Random) -> str:
    for _ in range(8):
        name = words.number_column(rng) if rng.random() < 0.5 else words.text_column(rng)
        if "_" in name:
            return name
    return f"{words.make(rng)}_{words.make(rng)}"


def _dates(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """Dates in several formats, and some arithmetic on them."""
    return [_date_fact(rng) for _ in range(rng.randint(2, 5))], Names()


def _date_fact(rng: Random) -> str:
    day = datetime.date(rng.randint(1900, 2040), rng.randint(1, 12), rng.randint(1, 28))
    step = rng.randint(2, 60)
    before, later = day - datetime.timedelta(1), day + datetime.timedelta(days=step)
    slashed, decade = f"{day.day}/{day.month}/{day.year}", f"{day.year // 10}0"
    return rng.choice(
        (
            f"{_long(day)} is also written {day.isoformat()}, {slashed} or {_short(day)}.",
            f"{step} days after {day.isoformat()} comes {later.isoformat()}, a {_weekday(later)}.",
            f"{_long(day)} was a {_weekday(day)}, and the day before it a {_weekday(before)}.",
            f"From {_long(day)} to {_long(later)} it takes {step} days.",
            f"{_MONTHS[day.month - 1]} is month {day.month} of the year; {day.year} is in decade {decade}.",
            f"{_long(later)} is later than {_long(day)}, and {day.year - 1} is earlier than both.",
        )
    )


def _long(day: datetime.date) -> str:
    return f"{_MONTHS[day.month - 1]} {day.day}, {day.year}"


def _short(day: datetime.date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1][:3]} {day.year}"


def _weekday(day: datetime.date) -> str:
    return _WEEKDAYS[day.weekday()]


def _described(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """A schema described in sentences."""
    schema = joined(words, rng) if rng.random() < 0.5 else single(words, rng)
    lines = [str(schema)]
    for table in schema.tables:
        spelled = [column.name for column in table.columns]
        lines.append(f"The table {table.name} has {len(spelled)} columns: {', '.join(spelled)}.")
        lines += [_column_fact(table, column, schema, rng) for column in rng.sample(table.columns, len(table.columns))]
    if schema.key:
        first, second = (table.name for table in schema.tables)
        lines.append(f"A row of {first} goes with one row of {second}; both tables share {schema.key}.")
        lines.append(f"To get from {first} to {second}, follow {schema.key}.")
    return lines, Names.of(schema)


def _column_fact(table: Table, column: Column, schema: Schema, rng: Random) -> str:
    if column.name == schema.key:
        return f"{column.name} is the key that tells which rows go together."
    examples: list[Cell] = list(dict.fromkeys(table.values(column)))[:3]
    kind = "a number" if column.type == "int" else "a text"
    name = spoken(column.name)
    said = rng.choice((f"{name} is", f"In {table.name}, {name} is", f"{column.name} holds"))
    return f"{said} {kind}, such as {', '.join(map(quoted, examples))}."


def _story(words: Vocabulary, rng: Random) -> tuple[list[str], Names]:
    """A small story in which a list changes."""
    table, people = words.table(rng), [words.value(rng).capitalize() for _ in range(3)]
    held = {person: rng.randint(1, 20) for person in dict.fromkeys(people)}
    lines = [f"{', '.join(f'{person} has {count} {table}' for person, count in held.items())}."]
    for _ in range(rng.randint(2, 5)):
        person = rng.choice(list(held))
        change = rng.randint(1, 9)
        held[person] += change
        lines.append(
            rng.choice(
                (
                    f"Someone brings {person} {change} more, so now {person} has {held[person]}.",
                    f"{person} finds {change} more {table} and ends the day with {held[person]}.",
                    f"With {change} more, {person} owns {held[person]} {table} altogether.",
                )
            )
        )
    most, least = max(held, key=lambda name: held[name]), min(held, key=lambda name: held[name])
    lines.append(f"In the end {most} has the most {table} and {least} has the fewest.")
    lines.append(f"Together they have {sum(held.values())}.")
    return [" ".join(lines)], Names(tables=frozenset((table,)), values=frozenset(name.lower() for name in held))


_Writer = Callable[[Vocabulary, Random], tuple[list[str], Names]]
_WRITERS: tuple[tuple[_Writer, int], ...] = (
    (_readings, 40),
    (_rephrasings, 18),
    (_rows, 14),
    (_comparisons, 8),
    (_lists, 6),
    (_spellings, 3),
    (_dates, 4),
    (_described, 6),
    (_story, 3),
)
