"""Dates: the day that a sentence names, in whatever way, as year-month-day.

The lease on flat 12 ends on the third of March 2021.
-> 2021-03-03
"""

import datetime
import hashlib
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
TRAINING = (
    "The meeting was on {date}.",
    "It opened on {date} in room {n}.",
    "{date}",
    "Born: {date}",
    "We leave on {date}, with {n} others.",
    "She wrote from Rome; {date} is what the letter says.",
    "Order {n} was paid on {date}.",
    "Dated {date}, signed by both.",
    "On {date} the bridge was closed.",
    "It happened on {date}, and {n} people saw it.",
    "Due {date}.",
    "Version {n} came out on {date}.",
    "{date}: the first snow.",
    "Please answer before {date}.",
    "The film was shown on {date} at {n} places.",
    "Since {date} nothing has changed.",
)
HELD_OUT = (
    "The lease on flat {n} ends on {date}.",
    "Our train is booked for {date}.",
    "Note {n}, taken on {date}.",
    "They were married on {date} in a small town.",
    "As of {date} the shop is open again.",
    "The museum bought it on {date}.",
)


def draw(split: Split, rng: Random) -> Row:
    day = _day(split, rng)
    sentence = rng.choice(TRAINING if split == "train" else HELD_OUT)
    return Row.exact(f"{sentence.format(date=written(day, rng.choice(FORMS)), n=rng.randint(2, 99))}\n", f"{day}")


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
    steps=240,
    rows=distinct("dates", draw),
)
