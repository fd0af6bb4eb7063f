"""The names and values of the quickstart: two vocabularies that share no word, and words made up from syllables.

training  real words and invented words, so that a name can only be copied and never recalled
held out  real words alone, none of which occurs in a training or pretraining name

Words that are invented from syllables alone are spelled with few of the vocabulary's tokens, and a base that has only
copied those writes "thentiquity" for "antiquity".  So there are three spellings: syllables; common words of technical
English (`common.words`) and halves of two of them put together; and pieces, which are the vocabulary's own tokens,
beginnings and continuations, each as likely as any other (`spelling.pieces`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from random import Random
from typing import Literal

from lorica.quickstart.phrasings import HELD_OUT, TRAINING, Split

Spelling = Literal["syllables", "words", "pieces"]

TRAIN_TABLES = """
actors albums animals apartments apples artists athletes authors bakeries bands banks batteries beaches bicycles birds
blankets boats books bottles boxes branches bridges buildings buses cabins cakes cameras camps candles cards cars
castles cats chairs cheeses chefs churches cities classes clients clinics clocks clubs coaches coats coins colleges
comics concerts cooks countries courses cows crates cups dancers deals deserts desks devices dishes doctors dogs doors
dragons drawings dresses drivers drums ducks engines events exams farmers farms festivals fields films fish flags
flights flowers folders forests games gardens gates goats guests guides guitars hats heroes hills horses hospitals
hotels houses invoices islands jackets jewels jobs judges keys kings kitchens knights ladders lakes lamps laptops
lawyers leaders lessons letters libraries lions lizards loans machines magazines mails maps markets meals
medals meetings members mice mines mirrors monkeys motors mountains movies museums nurses offices owners
packages paintings papers parcels parks parrots parties patients pens phones photos pilots pipes pizzas plants plates
players poems ports posters printers prisons projects puzzles queens rabbits races radios recipes rents rings rivers
roads robots rockets roofs rooms roses sailors salads sales schools screens seats servers sheep ships shirts shoes
shops singers snakes soldiers songs soups spoons sports stadiums stars stations stores streets students suits
tasks taxis teachers teams temples tenants tents theaters tickets tigers tools towers towns toys trains trees
trips trucks tunnels umbrellas users vans villages violins visitors wagons walls watches waves whales wheels windows
wines wolves workers writers zebras zones
"""

TEST_TABLES = """
harbors glaciers orchards volcanoes lanterns tractors ferries pigeons novelists vineyards scooters galaxies auctions
sculptures telescopes bakers submarines otters quarries tournaments helmets kayaks donors shipments beehives archives
satellites cyclists canyons tailors pianists mushrooms lighthouses warehouses carpets magnets diplomats reptiles
vaccines orchestras meteors ponds
"""

TRAIN_NUMBERS = """
age price weight height length width speed year salary score budget area distance cost income stock population
rating duration volume power pages goals wins losses floors temperature voltage energy mass
birth_year debut_year shoe_width page_rate room_rate seats_sold tax fee bonus debt profit takings
strength health damage armor mileage horsepower wheels_worn cylinders battery_life screen_width memory
storage clicks views likes shares followers comments downloads steps calories protein sugar salt fat servings
cook_minutes wait_minutes tracks chapters words lines  lap_seconds laps shots assists
fouls saves rent deposit bedrooms bathrooms roof_height wall_width door_width window_area
latitude altitude humidity rainfall snowfall wind_speed pressure brightness loudness frequency credits absences grade
attendance class_load  sick_days holidays hourly_wage monthly_wage yearly_wage
unit_price  sale_price discount quantity_sold stock_kept  shelf_life box_weight net_weight
"""

TEST_NUMBERS = """
depth diameter capacity elevation tonnage wattage thickness radius toll yield_percent octane petals berths payroll
mintage lumens harvest admissions founding_century tide_gap magnitude wingspan donations acreage
consumption dosage overdue_fines moons eruptions trophies antiquity barrels nectar rehearsals humps fathoms
bid_ceiling hull_span vintage circumference
"""

TRAIN_TEXTS = """
title color city country street brand model owner author artist genre language kind category status
shape material flavor style season month weekday captain coach manager teacher forename family_trade nickname
job role department company supplier customer_type vendor region district home_city birth_place
nation continent team_color eye_color hair_color body_color fabric pattern wood metal stone_kind paint finish gem
trait topic subject course theme mood sound instrument voice stance foot sport
league arena engine_kind  gear_kind body_kind breed diet habitat climate soil
crop fruit vegetable spice cuisine dish_kind drink sauce_kind snack ward disease drug
symptom blood_type gender religion_label faith payment_kind currency  account_kind priority stage
"""

TEST_TEXTS = """
landlord dialect province mascot architect sponsor publisher ripeness livery curator pigment rigging texture parish
anthem blossom dynasty surname profession emblem county mentor varnish conductor flagship pedigree sedative aroma
rental_tier launch_site nesting_ground clay_variety donor_circle upholstery hemisphere allergy signature_hue monarch
"""

TRAIN_VALUES = """
red blue green black white yellow brown purple orange pink gray silver gold paris london rome berlin madrid tokyo delhi
cairo lima quebec boston dallas denver miami texas nevada utah maine ohio france spain italy japan china india egypt
peru chile cuba kenya ghana iran nepal north south east west summer winter spring autumn monday tuesday friday sunday
january march april june july august october december medium tiny huge round square flat wide open
closed active paused pending done ready new used old fresh frozen dry wet hot cold mild sweet sour bitter salty
rock jazz pop folk blues metal soul opera drama comedy horror action crime fantasy history science math music art
english french german latin wood steel iron stone glass paper plastic cotton silk wool leather oak pine maple cedar
alice bob carol david emma frank grace henry irene jack karen leo maria nina oscar paul rita sam tom vera walter bread
rice corn beans milk tea coffee juice water soda beer apple pear grape lemon cherry lion tiger bear wolf fox deer
"""

TEST_VALUES = """
crimson indigo teal amber lisbon oslo vienna kyoto nairobi bergen havana naples zurich montana alaska brazil norway
portugal morocco finland dawn dusk noon midnight velvet linen bamboo copper marble granite ceramic walnut willow
mango papaya plum olive saffron ginger basil tango waltz disco reggae ballet poetry satire tragedy mystery physics
botany retired vacant rented sealed rusty hollow steep fragile olga felix hugo ingrid marco sofia victor yusuf
badger falcon heron salmon beetle swedish turkish korean greek
"""

_ONSETS = """
b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sm sn sp st str t th tr v w y z
"""
_VOWELS = "a e i o u a e i o u ai ea ee oa oo ou"
_CODAS = ("", "", "", *"b d g k l m n nd nk p r rn rt s st t th v x".split())  # noqa: SIM905


@dataclass(frozen=True)
class Vocabulary:
    """What tables, columns and text values may be called; `invented` is the share of names that `make` makes up."""

    tables: tuple[str, ...]
    numbers: tuple[str, ...]
    texts: tuple[str, ...]
    values: tuple[str, ...]
    invented: float
    make: Callable[[Random], str]

    def table(self, rng: Random) -> str:
        return self.make(rng).rstrip("s") + "s" if rng.random() < self.invented else rng.choice(self.tables)

    def number_column(self, rng: Random) -> str:
        return self._made_column(rng) if rng.random() < self.invented else rng.choice(self.numbers)

    def text_column(self, rng: Random) -> str:
        return self._made_column(rng) if rng.random() < self.invented else rng.choice(self.texts)

    def value(self, rng: Random) -> str:
        return self.make(rng) if rng.random() < self.invented else rng.choice(self.values)

    def _made_column(self, rng: Random) -> str:
        return f"{self.make(rng)}_{self.make(rng)}" if rng.random() < 0.12 else self.make(rng)

    def names(self) -> frozenset[str]:
        """Every table and column name, as it is spoken (`birth_year` as "birth year")."""
        return frozenset(spoken(name) for name in (*self.tables, *self.numbers, *self.texts))


def invent(rng: Random) -> str:
    """A pronounceable word that is in no list: two or three syllables, such as "blenko"."""
    while True:
        syllables = rng.choice((2, 2, 2, 3))
        word = "".join(rng.choice(_ONSET_LIST) + rng.choice(_VOWEL_LIST) for _ in range(syllables)) + rng.choice(_CODAS)
        if 4 <= len(word) <= 10 and word not in _RESERVED and word + "s" not in _RESERVED:
            return word


def draw_widely(rng: Random) -> str:
    """An invented word, a common one, or two halves of common ones."""
    kind = rng.random()
    if kind < 0.3:
        return invent(rng)
    common = common_words()
    return rng.choice(common) if kind < 0.7 else _spliced(rng.choice(common), rng.choice(common), rng)


@cache
def common_words() -> tuple[str, ...]:
    """4,134 words of technical English; none is held out, a keyword of SQL, or a word of the phrasings."""
    return tuple(files("lorica.quickstart").joinpath("common.words").read_text(encoding="utf-8").split())


def draw_pieces(rng: Random) -> str:
    """A word of two or three tokens, or one drawn widely."""
    if rng.random() < 0.5:
        return draw_widely(rng)
    beginnings, continuations = _pieces()
    while True:
        rest = (rng.choice(continuations) for _ in range(rng.choice((1, 1, 2))))
        word = rng.choice(beginnings) + "".join(rest)
        if 4 <= len(word) <= 12 and word not in _RESERVED and word + "s" not in _RESERVED:
            return word


@cache
def _pieces() -> tuple[list[str], list[str]]:
    lines = files("lorica.quickstart").joinpath("spelling.pieces").read_text(encoding="utf-8").splitlines()
    return lines[0].split(), lines[1].split()


def _spliced(first: str, second: str, rng: Random) -> str:
    """The beginning of one word and the end of another: "cancel" and "platform" give "cantform"."""
    word = first[: rng.randint(2, len(first) - 2)] + second[-rng.randint(2, len(second) - 2) :]
    safe = 4 <= len(word) <= 12 and word not in _RESERVED and word + "s" not in _RESERVED
    return word if safe else invent(rng)


def spoken(name: str) -> str:
    """A name as a question says it: `birth_year` is "birth year"."""
    return name.replace("_", " ")


_ONSET_LIST = _ONSETS.split()
_VOWEL_LIST = _VOWELS.split()
_HELD_OUT = Vocabulary(
    tables=tuple(TEST_TABLES.split()),
    numbers=tuple(TEST_NUMBERS.split()),
    texts=tuple(TEST_TEXTS.split()),
    values=tuple(TEST_VALUES.split()),
    invented=0.0,
    make=invent,
)
_TRAINING = Vocabulary(
    tables=tuple(TRAIN_TABLES.split()),
    numbers=tuple(TRAIN_NUMBERS.split()),
    texts=tuple(TRAIN_TEXTS.split()),
    values=tuple(TRAIN_VALUES.split()),
    invented=0.5,
    make=invent,
)
_SPELLINGS = {
    "syllables": _TRAINING,
    "words": replace(_TRAINING, invented=0.75, make=draw_widely),
    "pieces": replace(_TRAINING, invented=0.8, make=draw_pieces),
}
_LISTED = f"{TEST_TABLES} {TEST_NUMBERS} {TEST_TEXTS} {TEST_VALUES} {TRAIN_TABLES}"
_RESERVED = frozenset(_LISTED.replace("_", " ").split()) | TRAINING.words | HELD_OUT.words
"""Words that are never invented: held-out names, and the words of the phrasings."""


def vocabulary(split: Split, spelling: Spelling = "pieces") -> Vocabulary:
    """The names of a split; `spelling` says how those of the training split are made up."""
    return _HELD_OUT if split == "test" else _SPELLINGS[spelling]
