"""The quickstart's generator: the test half is new, gold queries mean what they say, the judge is not fooled."""

import itertools
import re
import sqlite3
import sys
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

import pytest

from lorica.quickstart.databases import build, rows_of, same_result
from lorica.quickstart.grammar import Grammar, Shape
from lorica.quickstart.intents import Condition, Intent
from lorica.quickstart.phrasings import HELD_OUT, TRAINING, contains_held_out, held_out_phrasings, sequences
from lorica.quickstart.plain import Names, documents, held_out_in, plain_text
from lorica.quickstart.questions import KINDS, Question, generate, masked
from lorica.quickstart.schema import Column, Schema, Table
from lorica.quickstart.words import spoken, vocabulary


@cache
def questions(split: str) -> tuple[Question, ...]:
    return tuple(generate(split, 1500 if split == "train" else 1000, seed=7))  # type: ignore[arg-type]


@cache
def plain() -> tuple[tuple[str, Names], ...]:
    return tuple(itertools.islice(documents(seed=11), 600))


def names_of(question: Question) -> set[str]:
    tables = question.schema.tables
    return {table.name for table in tables} | {column.name for table in tables for column in table.columns}


def words_of(names: set[str]) -> set[str]:
    words = {word for name in names for word in name.split("_")} - {"id"}
    return words | {word.removesuffix("s") for word in words}


def named(question: Question) -> str:
    """The question masked by its names alone, without what the generator knows of its phrasing."""
    return Names.of(question.schema).mask(question.text)


def test_the_same_seed_gives_the_same_questions_and_another_seed_others():
    first, again, other = ([question.to_row() for question in generate("train", 40, seed)] for seed in (1, 1, 2))
    assert first == again
    assert not {row["prompt"] for row in first} & {row["prompt"] for row in other}
    assert list(plain_text(3, 20_000)) == list(plain_text(3, 20_000)) != list(plain_text(4, 20_000))


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_prompt_is_given_twice_and_every_kind_is_asked(split: str):
    asked = questions(split)
    assert len({question.prompt for question in asked}) == len(asked)
    counts = Counter(question.kind for question in asked)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > len(asked) / 20


def test_names_and_values_of_the_test_split_never_occur_in_training_or_pretraining():
    held_out = words_of(set().union(*map(names_of, questions("test"))))
    trained = words_of(set().union(*map(names_of, questions("train"))))
    pretrained = words_of(set().union(*(names.tables | set(map(_spelled, names.columns)) for _, names in plain())))
    assert not held_out & (trained | pretrained)
    lists = [vocabulary(split) for split in ("train", "test")]
    assert not set(lists[0].values) & set(lists[1].values)
    assert not words_of({*lists[0].tables, *lists[0].numbers, *lists[0].texts}) & held_out


def _spelled(name: str) -> str:
    return name.replace(" ", "_")


def test_names_are_no_words_of_a_phrasing():
    for split in ("train", "test"):
        words = {word for name in vocabulary(split).names() for word in name.split()}
        assert not words & (TRAINING.words | HELD_OUT.words)


def test_masking_by_names_agrees_with_the_slots_of_the_phrasing():
    for question in (*questions("train"), *questions("test")):
        assert sequences(named(question)) == sequences(masked(question)), question.text


def test_held_out_questions_share_no_four_words_with_training_questions():
    asked = set().union(*(sequences(named(question)) for question in questions("test")))
    trained = set().union(*(sequences(named(question)) for question in questions("train")))
    assert len(asked) > 1000
    assert not asked & trained
    assert all(sequences(masked(question)) for question in questions("test"))


def test_held_out_questions_share_no_four_words_with_pretraining():
    asked = set().union(*(sequences(named(question)) for question in questions("test")))
    read = set().union(*(sequences(names.mask(text)) for text, names in plain()))
    assert len(read) > 10_000
    assert not asked & read


def test_every_sequence_of_every_held_out_question_is_in_the_enumerated_set():
    asked = set().union(*(sequences(named(question)) for question in questions("test")))
    enumerated = set().union(*map(sequences, held_out_phrasings()))
    assert asked <= enumerated


def test_the_comparison_sees_a_shared_phrasing():
    question = questions("test")[0]
    assert contains_held_out(named(question))
    assert held_out_in("Point me at the orchards record with lowest depth.")
    assert not held_out_in("def compare(self, other): return self.key < other.key")


def test_the_standard_library_holds_none_of_the_sequences_asked():
    if sys.version_info[:2] != (3, 11):
        pytest.skip("pretraining read the standard library of Python 3.11")
    asked = set().union(*(sequences(masked(question)) for question in questions("test")))
    shared = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if not contains_held_out(text) and (found := held_out_in(text) & asked):
            shared[path.name] = found
    assert not shared


def test_each_kind_has_at_least_six_held_out_frames_of_its_own():
    starts = {rule.split(":")[0] for rule in HELD_OUT.rules if rule.split(".")[0] in (*KINDS, "count")}
    assert starts == {
        *("filter.all", "filter.col", "aggregate", "count", "join", "group.agg", "group.count"),
        *(f"order.{many}.{what}" for many in ("one", "many") for what in ("all", "col")),
    }
    assert all(len(HELD_OUT.alternatives(start, ("some",))) >= 6 for start in starts)
    per_kind = {kind: {masked(question) for question in questions("test") if question.kind == kind} for kind in KINDS}
    assert min(map(len, per_kind.values())) >= 40


def test_training_words_its_questions_in_very_many_ways():
    assert len({masked(question) for question in questions("train")}) > 0.95 * len(questions("train"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_gold_results_are_not_empty_and_differ_from_those_of_wrong_columns_and_operators(split: str):
    tried = 0
    for question in questions(split)[:400]:
        connection = question.database()
        assert rows_of(connection, question.sql), question.sql
        for wrong in mutations(question):
            tried += 1
            assert not same_result(connection, question.sql, wrong), (question.sql, wrong)
        connection.close()
    assert tried > 900


def mutations(question: Question) -> list[str]:
    """The gold text with one token exchanged for another of its sort, by text alone."""
    types = {column.name: column.type for table in question.schema.tables for column in table.columns}
    tokens = question.sql.split()
    found = []
    for place, token in enumerate(tokens):
        for other in _others(token.rstrip(","), tokens, types):
            found.append(" ".join([*tokens[:place], other + "," * token.endswith(","), *tokens[place + 1 :]]))
    return found


def _others(token: str, tokens: list[str], types: dict[str, str]) -> list[str]:
    signs, functions = [">", "<", ">=", "<=", "="], ["avg(", "sum(", "min(", "max("]
    if token in signs and not any("'" in word for word in tokens):
        return [sign for sign in signs if sign != token]
    if token in functions:
        return [function for function in functions if function != token]
    if token in ("asc", "desc"):
        return ["desc" if token == "asc" else "asc"]
    if token in types and "join" not in tokens:
        used = {word.rstrip(",") for word in tokens}
        return [name for name, type_ in types.items() if type_ == types[token] and name not in used]
    return []


def test_boundary_values_are_in_the_data_so_that_greater_and_at_least_differ():
    thresholds = [question for question in questions("test") if re.search(r"(>=|<=|>|<) \d+", question.sql)]
    assert len(thresholds) > 100
    for question in thresholds:
        column, value = re.search(r"(\w+) (?:>=|<=|>|<) (\d+)", question.sql).groups()
        cells = [
            cell
            for table in question.schema.tables
            for place, one in enumerate(table.columns)
            if one.name == column
            for cell in (row[place] for row in table.rows)
        ]
        assert int(value) in cells


def test_questions_say_every_name_their_query_needs():
    for question in (*questions("train")[:500], *questions("test")[:500]):
        needed = {word.strip(",") for word in question.sql.split()} & names_of(question)
        unsaid = {name for name in needed if spoken(name) not in question.text.lower()}
        assert unsaid <= {question.schema.key}, (question.text, question.sql)


def test_prompts_are_short():
    lengths = [len(re.findall(r"\w+|[^\w\s]", row["prompt"] + row["completion"])) for row in _rows("train")]
    assert sum(length < 90 for length in lengths) > 0.95 * len(lengths)
    assert sum(lengths) / len(lengths) < 60


def _rows(split: str) -> list[dict[str, str]]:
    return [question.to_row() for question in questions(split)]


def test_a_row_is_the_schema_the_question_and_the_query():
    for question in questions("test")[:50]:
        row = question.to_row()
        lines = row["prompt"].split("\n")
        assert row["prompt"].endswith("\n")
        assert lines[-2] == question.text
        assert all(line.startswith("table ") for line in lines[:-2])
        assert row["completion"] == question.sql == question.sql.strip()


def test_pretraining_holds_no_sql_of_the_generator():
    text = "".join(text for text, _ in plain())
    assert not re.search(r"\bselect\b|count\(|\b(avg|sum|min|max)\(|using \(|\blimit \d", text, re.IGNORECASE)


def test_pretraining_says_what_its_questions_mean():
    schema = Schema((Table("boats", (Column("speed", "int"), Column("owner", "text")), ((5, "ann"),)),))
    intent = Intent(kind="filter", schema=schema, conditions=(Condition(schema.tables[0].columns[0], "ge", 5),))
    assert intent.sql == "select * from boats where speed >= 5"
    restated = [line for text, _ in plain() for line in text.splitlines() if line.startswith("wanted: ")]
    assert len(restated) > 50
    assert all("; table: " in line for line in restated)


# the judge


@pytest.fixture
def harbors() -> sqlite3.Connection:
    columns = (Column("harbor", "text"), Column("depth", "int"))
    rows = (("oslo", 30), ("bergen", 20), ("lisbon", 30))
    return build(Schema((Table("harbors", columns, rows),)))


def test_rows_count_and_their_order_counts_only_where_the_gold_query_orders(harbors: sqlite3.Connection):
    gold = "select harbor from harbors where depth = 30"
    assert same_result(harbors, gold, "select harbor from harbors where depth > 20 order by harbor asc")
    assert same_result(harbors, gold, "SELECT harbor FROM harbors WHERE depth >= 21;")
    assert not same_result(harbors, gold, "select depth from harbors where depth = 30")
    assert not same_result(harbors, "select depth from harbors", "select distinct depth from harbors")
    ordered = "select harbor from harbors order by harbor asc"
    assert not same_result(harbors, ordered, "select harbor from harbors order by harbor desc")
    assert not same_result(harbors, ordered, "select harbor from harbors order by harbor asc limit 2")


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "nonsense",
        "select",
        "select harbor from harbours",
        "select harbor from harbors; select harbor from harbors",
        "select harbor from harbors; drop table harbors",
        "drop table harbors",
        "delete from harbors",
        "update harbors set depth = 1",
        "insert into harbors values ('x', 1)",
        "create table more (x int)",
        "attach database 'other.db' as other",
        "pragma query_only = off",
        "pragma table_info(harbors)",
        "select * from pragma_table_info('harbors')",
        "select load_extension('x')",
        "select writefile('x', 'y')",
        "vacuum into 'copy.db'",
        "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n",
        "select (with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n)",
        "select count(*) from harbors a, harbors b, harbors c, harbors d, harbors e, harbors f, harbors g, harbors h, "
        "harbors i, harbors j, harbors k, harbors l, harbors m, harbors n, harbors o, harbors p",
        "select hex(zeroblob(2000000000))",
        "select harbor from harbors where harbor = '\ud800'",
        "select harbor from harbors where harbor = '\x00'",
        "select " + "(" * 5000 + "1" + ")" * 5000,
        "explain select harbor from harbors",
        "begin",
    ],
)
def test_hostile_or_broken_sql_is_only_a_wrong_answer(harbors: sqlite3.Connection, sql: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gold = "select harbor from harbors"
    assert not same_result(harbors, gold, sql)
    assert rows_of(harbors, gold) == [("oslo",), ("bergen",), ("lisbon",)]
    assert not list(tmp_path.iterdir())


def test_a_database_can_be_built_again_and_is_the_same():
    for question in questions("test")[:20]:
        one, two = question.database(), question.database()
        assert rows_of(one, question.sql) == rows_of(two, question.sql)
        one.close()
        two.close()


# grammars


def test_a_grammar_draws_only_what_it_enumerates():
    grammar = Grammar(
        "start = show {t} [*which] | all of\n  | [word:x] {t}\nwhich:gt = {c} > {v}\nand.which = and\nword:x = -\n"
    )
    shape = Shape("start", (), ("gt", "gt"))
    every = set(grammar.all(Shape("start", ("x",), ("gt", "gt"))))
    assert every >= {"show {t} {c0} > {v0} and {c1} > {v1}", "all of"}
    assert all(grammar.draw(shape, Random(seed)) in every for seed in range(20))
