"""Tiny adapters, and every way to damage their files.

    case number -> damage -> the bytes of three files      a pure function: any case can be looked at again alone

flip       one bit of one file                             every bit of every file
cut        a file that ends early                          every length
random     bytes overwritten, inserted, removed, repeated, moved
header     a safetensors header that lies: lengths, types, shapes, places, names, numbers, depth
payload    values that are NaN, infinite or other than they were
config     adapter_config.json and lorica.json with entries changed, removed, added, nested
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lorica import LoRA, adapter
from lorica.adapter.file import CONFIG, TENSORS
from lorica.adapter.manifest import NAME as MANIFEST
from lorica.methods import Full, Method

FILES = (TENSORS, CONFIG, MANIFEST)
Contents = Mapping[str, bytes]


class Tiny(nn.Module):
    """Two linears, so that every bit of an adapter can be tried."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 4, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


METHODS: Mapping[str, tuple[Method, int]] = {
    "lora": (LoRA(r=2, alpha=6, target_modules=("up", "down")), 1),
    "other values": (LoRA(r=2, alpha=6, target_modules=("up", "down")), 2),
    "other rank": (LoRA(r=3, alpha=6, target_modules=("up", "down")), 3),
    "other scale": (LoRA(r=2, alpha=5, target_modules=("up", "down")), 1),
    "one site": (LoRA(r=2, alpha=6, target_modules=("up",)), 1),
    "with a bias": (LoRA(r=2, alpha=6, target_modules=("up", "down"), bias="lora_only", rank_pattern={"up": 1}), 4),
    "full": (Full(), 5),
}


@cache
def specimen(name: str) -> dict[str, bytes]:
    """The three files of a saved adapter."""
    method, seed = METHODS[name]
    attached = adapter.attach(Tiny(), method)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    with TemporaryDirectory() as folder:
        attached.save(Path(folder) / "adapter", metrics={"loss": 0.5}, recipe={"data": {"template": None}})
        return {file: (Path(folder) / "adapter" / file).read_bytes() for file in FILES}


@dataclass(frozen=True)
class Case:
    """Damaged files, and what was done to them."""

    what: str
    contents: Contents


def flips(whole: Contents) -> Iterator[Case]:
    """Every bit of every file."""
    for file, data in whole.items():
        for bit in range(8 * len(data)):
            yield Case(f"flip {file}", {**whole, file: flipped(data, bit)})


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cuts(whole: Contents) -> Iterator[Case]:
    """Every length that is shorter, and a few that are longer."""
    for file, data in whole.items():
        for length in range(len(data)):
            yield Case(f"cut {file}", {**whole, file: data[:length]})
        for more in (b"\0", b"\n", b" ", b"{}", b"\0" * 64, data):
            yield Case(f"longer {file}", {**whole, file: data + more})


def swaps() -> Iterator[Case]:
    """Each of the three files from any of the specimens, and lorica.json from none."""
    for tensors in METHODS:
        for config in METHODS:
            for manifest in (*METHODS, None):
                contents = {TENSORS: specimen(tensors)[TENSORS], CONFIG: specimen(config)[CONFIG]}
                own = {} if manifest is None else {MANIFEST: specimen(manifest)[MANIFEST]}
                yield Case("swap", {**contents, **own})


def mutant(seed: int, number: int) -> Case:
    """Case `number` of the random and structural ones; every second one has no lorica.json, as others write it."""
    dice = random.Random(f"{seed}/{number}")
    whole = dict(specimen(("lora", "with a bias", "full")[number % 3]))
    if dice.random() < 0.5:
        del whole[MANIFEST]
    kind = dice.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        whole = KINDS[kind][0](dice, whole)
    if MANIFEST in whole and dice.random() < 0.1:
        whole, kind = {**whole, MANIFEST: resigned(whole)}, f"{kind}, signed again"
    return Case(kind, whole)


def resigned(whole: Contents) -> bytes:
    """A manifest with the hashes of the damaged files: what somebody who means harm would write."""
    try:
        manifest = json.loads(whole[MANIFEST])
        for file in (TENSORS, CONFIG):
            data = whole[file]
            manifest["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return json.dumps(manifest).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return whole[MANIFEST]


def _random(dice: random.Random, whole: dict[str, bytes]) -> dict[str, bytes]:
    file = dice.choice(list(whole))
    data = bytearray(whole[file])
    at, length = dice.randrange(len(data) + 1), dice.choice((1, 1, 2, 4, 8, 64, 1024))
    match dice.randrange(6):
        case 0:
            data[at : at + length] = dice.randbytes(length)
        case 1:
            data[at:at] = dice.randbytes(length)
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = data[at : at + length]
        case 4:
            other = dice.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
        case _:
            data[at : at + length] = dice.choice((b"\0", b"\xff", b"9", b'"', b"{", b"[")) * length
    return {**whole, file: bytes(data)}


Header = dict[str, Any]


def opened(data: bytes) -> tuple[Header, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def closed(text: bytes, payload: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def _header(dice: random.Random, whole: dict[str, bytes]) -> dict[str, bytes]:
    try:
        entries, payload = opened(whole[TENSORS])
        change = dice.choice(HEADER_CHANGES)
        return {**whole, TENSORS: change(dice, entries, payload)}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
        return _random(dice, whole)


def _text(entries: Header) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _some(dice: random.Random, entries: Header) -> str:
    return dice.choice([name for name in entries if name != "__metadata__"])


HUGE = (0, 1, -1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400, 1e308, -0.0, 1.5, True)
WORDS = (None, "", "F32", "f32", "U8", "F8_E4M3", "F4", "I64", "C64", [], {}, [[]], [1], "2", "\ud800", "a" * 10_000)


def _length_lies(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    text = _text(entries)
    small = max(0, len(text) + dice.randint(-40, 40))
    return closed(text, payload, dice.choice((0, 1, small, 2**31, 2**32, 2**63, 2**64 - 1, 100_000_001)))


def _place_lies(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    offsets = entries[_some(dice, entries)]["data_offsets"]
    side = dice.randrange(2)
    offsets[side] = dice.choice((offsets[side] + dice.randint(-16, 16), offsets[1 - side], *HUGE))
    return closed(_text(entries), payload)


def _shape_lies(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    entry = entries[_some(dice, entries)]
    shape = entry["shape"]
    entry["shape"] = dice.choice(
        (shape[::-1], [*shape, 1], [1] * 100 + shape, [], [0], [-1], [dice.choice(HUGE), dice.choice(HUGE)], None)
    )
    return closed(_text(entries), payload)


def _type_lies(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    entries[_some(dice, entries)]["dtype"] = dice.choice(("F64", "F16", "BF16", "I32", *WORDS))
    return closed(_text(entries), payload)


def _entry_changes(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    name, other = _some(dice, entries), _some(dice, entries)
    match dice.randrange(7):
        case 0:
            entries[name], entries[other] = entries[other], entries[name]
        case 1:
            entries[f"{name}x"] = entries.pop(name)
        case 2:
            del entries[name]
        case 3:
            entries[name] = dice.choice(WORDS)
        case 4:
            entries[name]["unknown"] = dice.choice((*WORDS, *HUGE))
        case 5:
            del entries[name][dice.choice(("dtype", "shape", "data_offsets"))]
        case _:
            entries[dice.choice(("", "..", "a\0b", "\x1b[2J", "x" * 600, "__metadata__"))] = entries[name]
    return closed(_text(entries), payload)


def _twice(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    """The same name again, with the place of another, or with all that stands behind it."""
    name, other = _some(dice, entries), _some(dice, entries)
    again = json.dumps({name: entries[other]})[1:]
    return closed(_text(entries).rstrip()[:-1] + b"," + again.encode(), payload)


def _metadata(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    entries["__metadata__"] = dice.choice(
        (*WORDS, {"a": 1}, {"a": {}}, {"a": "\ud800"}, {"\U0001f642": "x"}, {"x": "y" * 999})
    )
    return closed(_text(entries), payload)


def _deep(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    depth = dice.choice((30, 200, 2000, 20_000))
    opening = dice.choice((b"[", b'{"a":'))
    return closed(dice.choice((opening * depth, b'{"a":' + opening * depth, b'{"a":{"shape":' + b"[" * depth)), payload)


def _wide(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    entry = entries[_some(dice, entries)]
    count = dice.choice((10, 100, 400))
    return closed(_text({**entries, **{f"t{number}": entry for number in range(count)}}), payload)


def _spaced(dice: random.Random, entries: Header, payload: bytes) -> bytes:
    """The same header in other words: blanks, order and escapes change nothing."""
    names = list(entries)
    dice.shuffle(names)
    again = {
        name: dict(dice.sample(list(entries[name].items()), len(entries[name]))) if "shape" in entries[name] else {}
        for name in names
    }
    text = json.dumps(again, indent=dice.choice((None, 1, 4))).replace("lora", dice.choice(("lora", "l\\u006fra")))
    return closed(text.encode(), payload)


@dataclass(frozen=True)
class Giant:
    """Files made to take much more memory or time than their size."""

    what: str
    make: Callable[[], Contents]


def giants() -> Iterator[Giant]:
    """Headers at their largest and beyond, configs at theirs, and files whose parts only together make much work."""
    whole = {name: data for name, data in specimen("lora").items() if name != MANIFEST}
    one = b'{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    room = 16 << 20

    def header(text: bytes, payload: bytes = b"") -> Callable[[], Contents]:
        return lambda: {**whole, TENSORS: closed(text, payload)}

    def many(count: int, name: str) -> Callable[[], Contents]:
        entries = b",".join(
            b'"%s":%s' % ((name % number).encode(), one % (4 * number, 4 * number + 4)) for number in range(count)
        )
        return header(b"{" + entries + b"}", b"\0\0\x80?" * count)

    def config(**entries: Any) -> Callable[[], Contents]:
        return lambda: {**whole, CONFIG: json.dumps(json.loads(whole[CONFIG]) | entries).encode()}

    yield Giant("a header of blanks", header(b"{" + b" " * (room - 2) + b"}"))
    yield Giant("a header of lists", header((b"{" + b"[]," * (room // 3))[:room]))
    yield Giant("a header beyond the largest", header(b"{" + b" " * room + b"}"))
    yield Giant("a header of one name", header(b'{"' + b"a" * (room - 10) + b'":{}}'))
    yield Giant("a shape of a million", header(b'{"a":{"dtype":"F32","shape":[1' + b",1" * 10**6 + b"]}}"))
    yield Giant("metadata of 16 MB", header(b'{"__metadata__":{"a":"' + b"b" * (room - 100) + b'"}}'))
    yield Giant("metadata of a million", header(b'{"__metadata__":{"a":"b"' + b',"a":"b"' * 10**6 + b"}}"))
    yield Giant("50,000 tensors of no base", many(50_000, "base_model.model.x%d.lora_A.weight"))
    yield Giant("50,000 tensors beside its own", many(50_000, "up.%d.a.b.c.d.e.f.g.h.i.j.k.l"))
    yield Giant("100,002 tensors", many(100_002, "t%d"))
    yield Giant("names of 62 dots", many(10_000, "%d" + ".a" * 62))
    yield Giant("a pattern of 100,000 names", config(rank_pattern={f"x{number}": 2 for number in range(100_000)}))
    yield Giant(
        "a pattern of 60,000 patterns", config(alpha_pattern={f"(a+)+{number}$": 2 for number in range(60_000)})
    )
    yield Giant("100,000 modules to save", config(modules_to_save=[f"x{number}" for number in range(100_000)]))
    yield Giant("100,000 targets", config(target_modules=[f"x{number}" for number in range(100_000)]))
    yield Giant("100,000 unknown entries", config(**{f"x{number}": 1 for number in range(100_000)}))
    yield Giant("a config of lists", config(x=[[]] * 500_000))
    yield Giant("a config of 32 MB", config(x="y" * (32 << 20)))
    both = many(10_000, "%d" + ".a" * 62)
    yield Giant(
        "names of 62 dots and 50,000 modules to save",
        lambda: both() | {CONFIG: config(modules_to_save=[f"x{number}" for number in range(50_000)])()[CONFIG]},
    )
    yield Giant(
        "50,000 sites and 50,000 patterns",
        lambda: {
            TENSORS: many(50_000, "base_model.model.x%d.lora_A.weight")()[TENSORS],
            CONFIG: config(rank_pattern={f"x{number}": 2 for number in range(50_000)})()[CONFIG],
        },
    )


HEADER_CHANGES: tuple[Callable[[random.Random, Header, bytes], bytes], ...] = (
    _length_lies,
    _place_lies,
    _shape_lies,
    _type_lies,
    _entry_changes,
    _twice,
    _metadata,
    _deep,
    _wide,
    _spaced,
)
VALUES = tuple(bytes.fromhex(word) for word in ("0000c07f", "0000807f", "000080ff", "ffffffff", "ffff7f7f", "01000000"))
"""NaN, both infinities, a NaN of all ones, the largest float32 and the smallest."""


def _payload(dice: random.Random, whole: dict[str, bytes]) -> dict[str, bytes]:
    data = bytearray(whole[TENSORS])
    begin = 8 + int.from_bytes(data[:8], "little")
    if len(data) - begin < 4:
        return _random(dice, whole)
    at = begin + 4 * dice.randrange((len(data) - begin) // 4)
    data[at : at + 4] = dice.choice((*VALUES, dice.randbytes(4)))
    return {**whole, TENSORS: bytes(data)}


TREES = (*HUGE[:-4], *WORDS, 1e999, float("nan"), {"a": {"b": 1}}, ["q_proj", 3], "(a+)+$", "__import__('os')", "LORA")
UNKNOWN = (
    "use_dora",
    "spin",
    "auto_mapping",
    "megatron_config",
    "loftq_config",
    "corda_config",
    "",
    "r\0",
    "__class__",
)


def _config(dice: random.Random, whole: dict[str, bytes]) -> dict[str, bytes]:
    file = dice.choice([name for name in (CONFIG, CONFIG, MANIFEST) if name in whole])
    try:
        tree = json.loads(whole[file])
        text = _changed(dice, tree)
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return _random(dice, whole)
    return {**whole, file: text.encode("utf-8", "surrogatepass")}


def _changed(dice: random.Random, tree: dict[str, Any]) -> str:
    place = tree
    while dice.random() < 0.5 and (inner := [v for v in place.values() if isinstance(v, dict) and v]):
        place = dice.choice(inner)
    key = dice.choice(list(place))
    match dice.randrange(7):
        case 0:
            del place[key]
        case 1:
            place[dice.choice(UNKNOWN)] = dice.choice(TREES)
        case 2:
            place[key] = {f"k{number}": dice.choice(TREES) for number in range(dice.choice((1, 10, 200)))}
        case 3:
            depth = dice.choice((40, 900, 5000))
            return json.dumps(tree)[:-1] + f', "deep": {"[" * depth}{"]" * depth}' + "}"
        case 4:
            return json.dumps(tree)[:-1] + f", {json.dumps(key)}: {json.dumps(dice.choice(TREES))}" + "}"
        case 5:
            return json.dumps(dice.choice((list(tree), [tree], *WORDS)))
        case _:
            place[key] = dice.choice(TREES)
    return json.dumps(tree, indent=dice.choice((None, None, None, 2)), ensure_ascii=dice.random() < 0.5)


KINDS: Mapping[str, tuple[Callable[[random.Random, dict[str, bytes]], dict[str, bytes]], float]] = {
    "random": (_random, 3),
    "header": (_header, 3),
    "payload": (_payload, 1),
    "config": (_config, 3),
}
