"""JSON extraction: what a sentence says of a person, as an object with the keys that are asked for.

At 41, Amber Heron became an architect.
name, age, job
-> {"name": "Amber Heron", "age": 41, "job": "architect"}
"""

import json
import re
from functools import cache
from random import Random

from benchmarks.skill_data.skill import Row, Skill, distinct
from lorica.quickstart.phrasings import Split
from lorica.quickstart.words import common_words, vocabulary

KEYS = ("name", "age", "city", "job")
# What a test sentence says in words that no sentence below has: `{word}` is any word of technical English.
UNKNOWN_PREDICATES = (
    *("{word} in {city}", "{word} {a job}", "{word} from {city} as {a job}", "{word} and is {age}", "{word} at {age}"),
    *("was {age} as {city} {word} {a job}", "{word} {a job} at {age}", "{word} {word} {city}", "{word} {city}"),
    *("{word} to {city} and {word} {a job}", "was {age} if {city} {word} {a job}", "{word} {word} {a job} of {city}"),
)
UNKNOWN_OBJECTS = (
    *("{Word} {word} {name}", "We {word} {name}", "We {word} to {name}", "The {job} of the {word} is {name}"),
    *("The {word} {job} is {name}", "There {word} {a job} in {city}, {name}", "{Word} the {job} {word} {name}"),
    *("They {word} {word} {name}", "The {job} on {word} was {name}", "In {city} the {word} {word} {name}"),
)
OPENINGS = (
    *("{Word} {word}, ", "{Word} {word} {word}, ", "{Word}, "),
    *("", "", "", "", "In {city}, ", "At the age of {age}, ", "As {a job}, ", "Yesterday ", "They say that "),
    *("We heard that ", "Until last year, ", "From {city} we hear that ", "Once {age}, ", "Now in {city}, ", "Today "),
    *("When {age}, ", "Still {a job}, ", "According to the letter, ", "Near {city}, ", "If it is true, ", "At last "),
)
SUBJECTS = (
    *("{name}", "{name}", "{name}", "{name}", "{A job} named {name}", "the {job} {name}", "our friend {name}"),
    *("{name}, {a job},", "{name}, {age},", "{name} ({age})", "{name}, {age} years old,", "someone called {name}"),
    *("{name}, known as {a job},", "{name}, aged {age},", "{name} of {city}", "{name}, {job},", "the young {name}"),
    *("{name}, who lives in {city},", "{name}, who is {a job},", "a man by the name of {name}", "the {job}, {name},"),
)
PREDICATES = (
    *UNKNOWN_PREDICATES * 2,
    *("lives in {city}", "is {age} years old", "is from {city}", "works as {a job}", "works in {city} as {a job}"),
    *("was hired in {city}", "turned {age} last week", "is {age} and comes from {city}", "moved to {city}", "is {age}"),
    *("found work as {a job} at {age}", "called from {city}", "sends greetings", "is {a job}", "is {a job} in {city}"),
    *("went to {city} for work as {a job}", "was born in {city}", "has been {a job} since {age}", "won the prize"),
    *("will be {age} in May", "stays in {city}", "wants to be {a job}", "trains as {a job}", "reached {age}"),
)
OBJECTS = (
    *UNKNOWN_OBJECTS * 2,
    *("We met {name}", "I wrote to {name}", "Meet {name}", "This is {name}", "Ask {name}", "My neighbour is {name}"),
    *("The winner was {name}", "Her name is {name}", "His name is {name}", "You remember {name}", "It was {name}"),
    *("Our new {job} is {name}", "They hired the {job} {name}", "Here comes {name}", "The letter is from {name}"),
    *("A prize went to {name}", "In {city} we met {name}", "In {city} lives {name}", "There was {a job}, {name}"),
)
TAILS = (
    *(" {word} {city}", ", {a job} {word} {city}", " {word} {word}, {age}", " and {word} {city} at {age}"),
    *(" {word} {a job}", ", {a job} from {city}", ", {age}, of {city}", " in {city}", ", who is {age}"),
    ", who works as {a job}",
    *(", aged {age}", ", {a job} of {age}", " from {city}", " from {city}, {age} years old", ", now {a job}", ""),
    *(", {job} in {city}", " and she is {age}", " and he is {a job}", ", {age}", ", {job}, {age}", ", our {job}"),
    *(", the {job} of {city}", " with the age of {age}", " of {city}, who is {a job}", ", {job} by trade"),
)
PAIRS = ("{0}: {{{0}}}", "{0} {{{0}}}", "{0} = {{{0}}}", "{0} is {{{0}}}")
SEPARATORS = (", ", "; ", " / ", " and ", ". ")
HELD_OUT = (
    "We spoke to {name}, {a job} from {city}.",
    "At {age}, {name} became {a job}.",
    "{name}, who is {age}, left for {city} to be {a job}.",
    "As {a job} in {city}, {name} is well known.",
    "The {job} of the year is {name}, aged {age}.",
    "{name} has come to {city} and is now {age}.",
    "There is {a job} in {city} with the name {name}.",
    "{name} was {age} when {city} needed {a job}.",
)
_WORD = re.compile(r"\{([Ww])ord\}")
_SLOT = re.compile(r"\{(A |a |)(\w+)\}")


@cache
def fillers() -> tuple[str, ...]:
    """Words that stand for any other in training, so that no word is known by what it is; none is of the test."""
    taken = set(re.findall(r"[a-z]+", " ".join(HELD_OUT).lower()))
    return tuple(word for word in common_words() if word not in taken)


def draw(split: Split, rng: Random) -> Row:
    words = vocabulary(split)
    name, city = f"{words.value(rng)} {words.value(rng)}".title(), words.value(rng).title()
    person = {"name": name, "age": rng.randint(18, 90), "city": city, "job": words.text_column(rng).partition("_")[0]}
    sentence = _sentence(rng) if split == "train" else rng.choice(HELD_OUT)
    asked = [key for key in KEYS if key in _slots(sentence)]
    prompt = _SLOT.sub(lambda match: _with_article(match[1], str(person[match[2]])), sentence)
    return Row.exact(f"{prompt}\n{', '.join(asked)}\n", json.dumps({key: person[key] for key in asked}))


def _sentence(rng: Random) -> str:
    """One that says two things or more of a person, and none of them twice."""
    while True:
        sentence = rng.choice((_telling, _telling, _pointing, _pointing, _listing))(rng)
        slots = _slots(sentence)
        if len(slots) == len(set(slots)) > 1:
            return _WORD.sub(lambda match: _filler(match[1], rng), sentence)


def _filler(letter: str, rng: Random) -> str:
    word = rng.choice(fillers())
    return word.capitalize() if letter == "W" else word


def _telling(rng: Random) -> str:
    opening = rng.choice(OPENINGS)
    subject = rng.choice(SUBJECTS)
    return f"{opening}{subject if opening else _upper(subject)} {rng.choice(PREDICATES)}."


def _pointing(rng: Random) -> str:
    return f"{rng.choice(OBJECTS)}{rng.choice(TAILS)}."


def _listing(rng: Random) -> str:
    keys = ["name", *rng.sample(KEYS[1:], rng.randint(1, 3))]
    pair = rng.choice(PAIRS)
    return rng.choice(SEPARATORS).join(pair.format(key) for key in rng.sample(keys, len(keys)))


def _slots(sentence: str) -> list[str]:
    return [slot for _, slot in _SLOT.findall(sentence) if slot in KEYS]


def _upper(text: str) -> str:
    return text if text.startswith("{") else text[0].upper() + text[1:]


def _with_article(article: str, word: str) -> str:
    if not article:
        return word
    return f"{article.strip()}{'n' if word[0] in 'aeiou' else ''} {word}"


SKILL = Skill(
    name="json",
    says="a sentence about a person, and keys, become an object",
    apart="names, cities, jobs and sentences",
    measure="the object, to the character",
    steps=700,
    rows=distinct("json", draw),
)
