"""JSON extraction: what a sentence says of a person, as an object with the keys that it says something about.

At 41, Amber Heron became an architect.
-> {"name": "Amber Heron", "age": 41, "job": "architect"}
"""

import json
import re
from random import Random

from benchmarks.skill_data.skill import Row, Skill, distinct
from lorica.quickstart.phrasings import Split
from lorica.quickstart.words import vocabulary

KEYS = ("name", "age", "city", "job")
TRAINING = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, {age}, works as {a job} in {city}.",
    "In {city} you will find {name}, {a job} of {age}.",
    "The {job} {name} moved to {city} when only {age}.",
    "Our new {job} is {name} from {city}.",
    "{name} from {city} turned {age} last week.",
    "At the age of {age} it was {name} who became {a job}.",
    "{city} is the home of {name}, who is {age}.",
    "Meet {name}, {job}, {age}, of {city}.",
    "Her name is {name}, she is {age} and she is {a job}.",
    "{name} ({age}) is {a job}.",
    "They hired {name} as {a job} in {city}.",
    "{A job} named {name} lives in {city}.",
    "{age} years old, {name} still works as {a job} in {city}.",
    "His job is {job}, his age is {age}, and he is called {name}.",
    "{name} was born in {city}.",
    "{name} is {a job}.",
    "Everyone in {city} knows the {job} {name}.",
    "name: {name}; city: {city}; age: {age}",
    "I met {name} in {city}; {age} years old, and already {a job}.",
)
HELD_OUT = (
    "We spoke to {name}, {a job} from {city}.",
    "At {age}, {name} became {a job}.",
    "{name}, who is {age}, left for {city} to be {a job}.",
    "As {a job} in {city}, {name} is well known.",
    "The {job} of the year is {name}, aged {age}.",
    "{name} has come to {city} and is now {age}.",
    "There is {a job} in {city} with the name {name}.",
    "Age {age}, name {name}, job {job}.",
)
_SLOT = re.compile(r"\{(A |a |)(\w+)\}")


def draw(split: Split, rng: Random) -> Row:
    words = vocabulary(split)
    name, city = (f"{_name(words.value(rng))} {_name(words.value(rng))}", _name(words.value(rng)))
    person = {"name": name, "age": rng.randint(18, 90), "city": city, "job": _plain(words.text_column(rng))}
    sentence = rng.choice(TRAINING if split == "train" else HELD_OUT)
    said = {slot for _, slot in _SLOT.findall(sentence)}
    prompt = _SLOT.sub(lambda match: _with_article(match[1], str(person[match[2]])), sentence)
    return Row.exact(f"{prompt}\n", json.dumps({key: person[key] for key in KEYS if key in said}))


def _name(word: str) -> str:
    return word.capitalize()


def _plain(word: str) -> str:
    return word.partition("_")[0]


def _with_article(article: str, word: str) -> str:
    if not article:
        return word
    return f"{article.strip()}{'n' if word[0] in 'aeiou' else ''} {word}"


SKILL = Skill(
    name="json",
    says="a sentence about a person becomes an object",
    apart="names, cities, jobs and sentences",
    measure="the object, to the character",
    steps=240,
    rows=distinct("json", draw),
)
