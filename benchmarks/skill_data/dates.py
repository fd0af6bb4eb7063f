"""Dates: the day that a sentence names, in whatever way, as year-month-day.

The lease on flat 12 ends on the third of March 2021.
-> 2021-03-03
"""

import datetime
import hashlib
import re
from random import Random

from benchmarks.skill_data.skill import Row, Skill, distinct
from lorica.quickstart.phrasings import Split

FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2039, 12, 31)
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_UNITS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
ORDINALS = (
    *_UNITS, "tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth", *(f"twenty-{unit}" for unit in _UNITS), "thirtieth", "thirty-first",
)  # fmt: skip
FORMS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{day} {short} {year}",
    "{short} {day}, {year}",
    "{month} {nth}, {year}",
    "the {nth} of {month} {year}",
    "the {ordinal} of {month} {year}",
    "{month} the {ordinal}, {year}",
    "{weekday}, {day} {month} {year}",
    "{weekday} the {nth} of {month}, {year}",
    "{day}.{number}.{year}",
    "{day:02}/{number:02}/{year}",
    "{day}-{short}-{year}",
    "{year}, {month} {day}",
    "{year}/{number:02}/{day:02}",
    "the {nth} day of {month} in {year}",
)
"""Where both are numbers, the day comes first, unless the year does."""
SUBJECTS = (
    *("The meeting", "Order {n}", "The show in room {n}", "Bill {n}", "Part {n} of the book", "The bridge", "It"),
    *("The vote", "House {n}", "Ship number {n}", "Flight {n}", "A storm", "Version {n}", "The first of {n} parts"),
    *(
        "The shop at gate {n}",
        "Her letter",
        "Case {n}",
        "The road",
        "Hall {n}",
        "The visit of {n} guests",
        "Everything",
    ),
)
VERBS = (
    *("was held on", "is due on", "came out on", "began on", "was paid on", "opened on", "was closed on", "starts on"),
    *(
        "was finished on",
        "happened on",
        "ended on",
        "was found on",
        "changed on",
        "is planned for",
        "left on",
        "dates from",
    ),
)
TAILS = (
    *("", "", "", "", ", with {n} others", " in a village", " and nobody came", ", as {n} people saw", " at last"),
    *(" for {n} days", ", or so they say", " by the sea", " near house {n}", ", page {n}", " without a word"),
)
BARE = (
    *(
        "{date}",
        "Born: {date}",
        "Dated {date}",
        "On {date}",
        "Due {date}",
        "{date}: snow",
        "From {date} on",
        "Date: {date}",
    ),
    *("No. {n}, {date}", "({date})", "{date}, page {n}", "Before {date}", "Since {date} nothing is new"),
)
HELD_OUT = (
    "The lease on flat {n} ends on {date}.",
    "Our train is booked for {date}.",
    "Note {n}, taken on {date}.",
    "They were married on {date} in a small town.",
    "As of {date} the shop is open again.",
    "The museum bought it on {date}.",
)

_NUMBER = re.compile(r"\{n\}")


def draw(split: Split, rng: Random) -> Row:
    day = _day(split, rng)
    sentence = _sentence(rng) if split == "train" else rng.choice(HELD_OUT)
    said = _NUMBER.sub(lambda _: str(rng.randint(2, 99)), sentence).replace("{date}", written(day, rng.choice(FORMS)))
    return Row.exact(f"{said}\n", f"{day}")


def _sentence(rng: Random) -> str:
    if rng.random() < 0.2:
        return rng.choice(BARE)
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {{date}}{rng.choice(TAILS)}."


def written(day: datetime.date, form: str) -> str:
    return form.format(
        day=day.day,
        nth=f"{day.day}{_ending(day.day)}",
        ordinal=ORDINALS[day.day - 1],
        month=MONTHS[day.month - 1],
        short=MONTHS[day.month - 1][:3],
        number=day.month,
        year=day.year,
        weekday=WEEKDAYS[day.weekday()],
    )


def of_test(day: datetime.date) -> bool:
    """One day in five."""
    return int(hashlib.sha256(str(day).encode()).hexdigest(), 16) % 5 == 0


def _day(split: Split, rng: Random) -> datetime.date:
    while True:
        day = FIRST + datetime.timedelta(days=rng.randint(0, (LAST - FIRST).days))
        if of_test(day) == (split == "test"):
            return day


def _ending(day: int) -> str:
    if day in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


SKILL = Skill(
    name="dates",
    says="a date written in one of sixteen ways becomes year-month-day",
    apart="days and sentences",
    measure="the date, to the character",
    steps=400,
    rows=distinct("dates", draw),
)
