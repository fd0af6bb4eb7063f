"""The four skills: rows that a seed fixes, tests that share nothing with training, judges that can say no, a page that
says what the result says."""

import datetime
import json
import re
from pathlib import Path

import pytest

from benchmarks import skills_page
from benchmarks.skill_data import SKILLS, Row, Skill, c_comments, dates, json_extraction
from benchmarks.skills import LONGEST_ANSWER, named
from lorica.quickstart.words import vocabulary

ROOT = Path(__file__).parents[2]
SKILL = pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)


@SKILL
def test_the_same_seed_gives_the_same_rows_and_no_prompt_twice(skill: Skill) -> None:
    rows = list(skill.rows("train", 60, 3))
    assert rows == list(skill.rows("train", 60, 3))
    assert rows != list(skill.rows("train", 60, 4))
    assert len({row.prompt for row in rows}) == 60


@SKILL
def test_no_prompt_of_a_test_is_trained_on(skill: Skill) -> None:
    trained = {row.prompt for row in skill.rows("train", 2000, 0)}
    assert trained.isdisjoint(row.prompt for row in skill.rows("test", 200, 0))


@SKILL
def test_the_answer_of_a_row_is_right_and_nothing_or_the_prompt_is_not(skill: Skill) -> None:
    for row in skill.rows("test", 40, 0):
        assert row.right(row.answer)
        assert row.right(f" {row.answer}\n")
        assert skill.name == "sql" or not row.right(row.answer[:-1])
        assert not row.right("")
        assert not row.right(row.prompt)


@SKILL
def test_the_longest_answer_has_room(skill: Skill) -> None:
    import lorica

    tokenizer = lorica.load_base("embedded").tokenizer
    longest = max(len(tokenizer.encode(row.answer)) for row in skill.rows("test", 200, 0))
    assert longest < LONGEST_ANSWER


@pytest.mark.parametrize("form", dates.FORMS)
def test_every_form_of_a_date_says_day_month_and_year(form: str) -> None:
    """Two days that differ in one of the three are never written alike."""
    day = datetime.date(2021, 3, 4)
    others = [datetime.date(2021, 3, 5), datetime.date(2021, 4, 4), datetime.date(2022, 3, 4)]
    assert all(dates.written(day, form) != dates.written(other, form) for other in others)


def test_days_and_sentences_of_the_dates_are_apart() -> None:
    train, test = (list(dates.SKILL.rows(split, 2000, 0)) for split in ("train", "test"))
    assert {row.answer for row in train}.isdisjoint(row.answer for row in test)
    parts = "|".join(map(re.escape, sorted({beginning(sentence) for sentence in dates.HELD_OUT})))
    assert all(re.match(parts, row.prompt) for row in test)
    assert not any(re.match(parts, row.prompt) for row in train)


def beginning(sentence: str) -> str:
    """The words before the first slot."""
    return sentence.partition("{")[0]


def test_words_and_sentences_of_people_are_apart() -> None:
    held_out, train = vocabulary("test"), list(json_extraction.SKILL.rows("train", 3000, 0))
    for row in train:
        said = json.loads(row.answer)
        words = {word.lower() for key in ("name", "city", "job") if key in said for word in said[key].split()}
        assert words.isdisjoint({*held_out.values, *held_out.texts})
    masked = {template(row) for row in train}
    assert len(masked) > 500
    assert masked.isdisjoint(template(row) for row in json_extraction.SKILL.rows("test", 200, 0))


def template(row: Row) -> str:
    """The sentence with what it says of the person taken out."""
    text = row.prompt.partition("\n")[0]
    for key, value in json.loads(row.answer).items():
        text = text.replace(str(value), f"<{key}>")
    return re.sub(r"\b(an?) <", r"a <", text, flags=re.IGNORECASE)


def test_a_person_is_said_in_the_sentence_that_names_it() -> None:
    for row in json_extraction.SKILL.rows("test", 100, 0):
        assert all(str(value) in row.prompt for value in json.loads(row.answer).values())


def test_a_comment_names_every_parameter_in_order() -> None:
    for row in c_comments.SKILL.rows("test", 100, 0):
        inside = re.search(r"\((.*)\);", row.prompt)
        assert inside
        parameters = [each.split()[-1].lstrip("*") for each in inside[1].split(", ") if each != "void"]
        assert re.findall(r"(\w+) \(", row.answer) == parameters


def test_a_mix_is_named_by_its_weights() -> None:
    assert named({}) == "base"
    assert named({"sql": 1.0}) == "sql"
    assert named({"sql": 0.7, "json": 0.3}) == "0.7 sql + 0.3 json"


def test_the_page_is_made_from_the_result() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "skills.json").read_text())
    assert (ROOT / "docs" / "skills.md").read_text() == skills_page.page(result)
    own = [result["matrix"][skill.name][skill.name] for skill in SKILLS]
    base = [result["matrix"]["base"][skill.name] for skill in SKILLS]
    assert all(after > before + 0.5 for after, before in zip(own, base, strict=True))
