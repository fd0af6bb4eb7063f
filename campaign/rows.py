"""Malformed data files of every format, each with what a reader must say of it, known by how it was made.

    seed, number -> defect, shape, rows, place of the defect -> a file or folder, and what is expected of reading it

Expected is either rows, of which some are dropped with a reason, or one error with file, line and what stands there.
"""

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
WORDS = ("pear", "naïve", "東京", "שלום", "a,b", "x;y", "tab\there", "🙂", "SELECT 1", "{}", "'q'", "\\n", "été", "0")
SHAPES = ("prompt_completion", "messages", "alpaca", "sharegpt", "text")
FLAT = ("prompt_completion", "alpaca", "text")
FIRST_FIELD = {"prompt_completion": "completion", "alpaca": "output", "text": "text"}


@dataclass(frozen=True)
class Read:
    """So many rows, of which so many are dropped."""

    rows: int
    dropped: int = 0


@dataclass(frozen=True)
class Refused:
    """A line of the error begins with this place (line 0: the file as a whole) and holds these words."""

    name: str
    line: int
    words: tuple[str, ...] = ()


@dataclass
class Planted:
    """A source on the disk, how it is read, and what must come of it."""

    source: str
    expected: Read | Refused | None
    config: Mapping[str, Any] = field(default_factory=dict)


def said(dice: random.Random) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(dice.randint(1, 4)))


def row(dice: random.Random, shape: str) -> Row:
    """A good one."""
    turns = [("user", said(dice)), ("assistant", said(dice))] * dice.randint(1, 2)
    match shape:
        case "prompt_completion":
            return {"prompt": said(dice), "completion": said(dice)}
        case "messages":
            return {"messages": [{"role": role, "content": text} for role, text in turns]}
        case "alpaca":
            return {"instruction": said(dice), "output": said(dice)}
        case "sharegpt":
            names = {"user": "human", "assistant": "gpt"}
            return {"conversations": [{"from": names[role], "value": text} for role, text in turns]}
    return {"text": said(dice)}


@dataclass
class Table:
    """Good rows of one shape, one of which (`at`) is about to go bad."""

    dice: random.Random
    folder: Path
    shape: str
    rows: list[Row]
    at: int

    @classmethod
    def of(cls, dice: random.Random, folder: Path, shapes: tuple[str, ...] = SHAPES) -> "Table":
        shape = dice.choice(shapes)
        rows = [row(dice, shape) for _ in range(dice.randint(2, 12))]
        return cls(dice, folder, shape, rows, dice.randrange(1, len(rows)))

    def put(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def lines(self) -> list[bytes]:
        ascii_only = self.dice.random() < 0.5
        return [json.dumps(each, ensure_ascii=ascii_only).encode() for each in self.rows]

    def jsonl(self, bad: bytes, words: tuple[str, ...] = (), name: str = "rows.jsonl") -> Planted:
        """The rows as JSON lines, the bad one written so."""
        lines = self.lines()
        lines[self.at] = bad
        source = self.put(name, b"\n".join(lines) + b"\n")
        return Planted(source, Refused(source, self.at + 1, words))

    def json(self, bad: bytes, words: tuple[str, ...] = ()) -> Planted:
        """The rows as one JSON array, a row a line."""
        lines = self.lines()
        lines[self.at] = bad
        source = self.put("rows.json", b"[\n" + b",\n".join(lines) + b"\n]\n")
        return Planted(source, Refused(source, self.at + 2, words))

    def either(self, bad: bytes, words: tuple[str, ...] = ()) -> Planted:
        return self.jsonl(bad, words) if self.dice.random() < 0.7 else self.json(bad, words)

    def replaced(self, changed: Row, words: tuple[str, ...]) -> Planted:
        """The bad row as a value, in whichever format holds it."""
        self.rows[self.at] = changed
        return self.either(json.dumps(changed).encode(), words)

    def parquet(self, expected: Read | Refused | None = None) -> Planted:
        path = self.folder / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(self.rows), path)
        return Planted(str(path), expected or Read(len(self.rows)))

    def csv(self, separator: str = ",", records: list[list[str]] | None = None) -> list[str]:
        """Lines of a CSV file, the header first, every field quoted."""
        header = list(self.rows[0])
        table = [header, *([str(each[key]) for key in header] for each in self.rows)] if records is None else records
        return [separator.join('"' + value.replace('"', '""') + '"' for value in record) for record in table]

    def put_csv(self, lines: list[str], line: int, words: tuple[str, ...], separator: str = ",") -> Planted:
        source = self.put("rows.csv" if separator == "," else "rows.tsv", ("\n".join(lines) + "\n").encode())
        return Planted(source, Refused(source, line, words))


Defect = Callable[[random.Random, Path], Planted]


def raw(*choices: tuple[bytes, tuple[str, ...]]) -> Defect:
    """A line that is no row, whatever the shape of the others."""

    def defect(dice: random.Random, folder: Path) -> Planted:
        return Table.of(dice, folder).either(*dice.choice(choices))

    return defect


def lines_only(*choices: tuple[bytes, tuple[str, ...]]) -> Defect:
    def defect(dice: random.Random, folder: Path) -> Planted:
        return Table.of(dice, folder).jsonl(*dice.choice(choices))

    return defect


def cut_off(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder)
    table.at = len(table.rows) - 1
    good = table.lines()[-1]
    return table.jsonl(good[: dice.randrange(1, len(good))])


def not_utf8(dice: random.Random, folder: Path) -> Planted:
    bad = dice.choice((b"\xe9", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\x80", b"\xf8\x88\x80\x80\x80"))
    return Table.of(dice, folder).either(b'{"text": "a' + bad + b'"}', ("is not UTF-8",))


def other_encoding(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder)
    text = b"\n".join(table.lines()).decode()
    source = table.put(dice.choice(("rows.jsonl", "rows.json")), text.encode(dice.choice(("utf-16", "utf-32"))))
    return Planted(source, Refused(source, 0, ("UTF-16",)))


def other_format(dice: random.Random, folder: Path) -> Planted:
    magic = {
        b"\x1f\x8b\x08": "gzip",
        b"PK\x03\x04": "zip",
        b"\xfd7zXZ\0": "xz",
        b"(\xb5/\xfd": "zstd",
        b"%PDF-1": "PDF",
    }
    head, word = dice.choice(list(magic.items()))
    name = dice.choice(("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.txt"))
    source = Table.of(dice, folder).put(name, head + dice.randbytes(100))
    return Planted(source, Refused(source, 0, (word,)))


def unusual(dice: random.Random, folder: Path) -> Planted:
    """Marks, line ends and blank lines that change nothing."""
    table = Table.of(dice, folder)
    end = dice.choice((b"\n", b"\r\n", b"\n\n", b"\n \t\n"))
    text = end.join(table.lines()) + dice.choice((b"", end, b"\n\n\n"))
    source = table.put("rows.jsonl", dice.choice((b"", b"\xef\xbb\xbf")) + text)
    return Planted(source, Read(len(table.rows)))


def array_defect(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder)
    lines = b",\n".join(table.lines())
    last = len(table.rows)
    text, line, word = dice.choice(
        (
            (b"[\n" + lines + b"\n", last + 2, "missing"),
            (b"[\n" + lines + b",\n]", last + 2, "column"),
            (b"[\n" + lines + b"\n]\n[]", last + 3, "more follows"),
            (b"[\n" + lines.replace(b",\n", b"\n", 1) + b"\n]", 3, "missing"),
        )
    )
    source = table.put("rows.json", text)
    return Planted(source, Refused(source, line, (word,)))


def wrong_type(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, FLAT)
    key = FIRST_FIELD[table.shape]
    value, word = dice.choice(((3, "a number"), (True, "true"), (None, "null"), ([], "an array"), ({}, "an object")))
    return table.replaced({**table.rows[table.at], key: value}, (f"'{key}'", word))


def wrong_turn(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("messages",))
    changed = json.loads(json.dumps(table.rows[table.at]))
    number = dice.randrange(len(changed["messages"]))
    turn, at = changed["messages"][number], f"messages[{number}]"
    match dice.randrange(5):
        case 0:
            turn["role"], word = dice.choice(("asistant", "bot", "", "USER")), f"{at}.role"
        case 1:
            word = f"{at}.role"
            del turn["role"]
        case 2:
            turn["content"], word = dice.choice((3, None, {"text": "a"}, True)), f"{at}.content"
        case 3:
            turn["content"], word = [{"type": "image_url", "image_url": "x"}], f"{at}.content[0]"
        case _:
            changed["messages"][number], word = dice.choice(("hi", 3, None, [])), at
    return table.replaced(changed, (word,))


def wrong_conversation(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("sharegpt",))
    changed = json.loads(json.dumps(table.rows[table.at]))
    turn, word = changed["conversations"][0], "conversations[0]"
    match dice.randrange(4):
        case 0:
            turn["from"] = dice.choice(("humn", "", "narrator"))
        case 1:
            del turn["value"]
        case 2:
            turn["value"] = dice.choice((1.5, None, ["a"]))
        case _:
            changed["conversations"], word = dice.choice(("hi", 3, None, {})), "conversations"
    return table.replaced(changed, (word,))


def another_shape(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder)
    other = dice.choice([shape for shape in SHAPES if shape != table.shape])
    return table.replaced(row(dice, other), (f"among {table.shape} rows",))


def wrong_columns(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder)
    names = dice.choice((("question", "answer"), ("promt", "completion"), ("input", "label"), ("Text", "id")))
    table.rows = [dict.fromkeys(names, said(dice)) for _ in table.rows]
    table.at = 0
    return table.replaced(table.rows[0], ("fit no shape", names[0]))


def two_shapes_at_once(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("text",))
    table.rows = [{**each, "prompt": "a", "completion": "b"} for each in table.rows]
    table.at = 0
    return table.replaced(table.rows[0], ("data.shape", "prompt_completion and text"))


def stated_otherwise(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("text",))
    planted = table.replaced(table.rows[table.at], ("'prompt' is missing",))
    planted.config = {"shape": "prompt_completion"}
    return planted


def nothing_to_learn(dice: random.Random, folder: Path) -> Planted:
    """Rows that are well formed and say nothing are dropped, and counted."""
    table = Table.of(dice, folder)
    empty: dict[str, Row] = {
        "prompt_completion": {"prompt": "a", "completion": ""},
        "messages": dice.choice(({"messages": []}, {"messages": [{"role": "user", "content": "a"}]})),
        "alpaca": {"instruction": "a", "output": ""},
        "sharegpt": dice.choice(({"conversations": []}, {"conversations": [{"from": "human", "value": "a"}]})),
        "text": {"text": ""},
    }
    table.rows[table.at] = empty[table.shape]
    planted = table.either(json.dumps(table.rows[table.at]).encode())
    planted.expected = Read(len(table.rows), 1)
    return planted


def too_long(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("prompt_completion", "messages", "alpaca", "sharegpt"))
    long = json.dumps(table.rows[table.at]).replace('"user"', '"user "').replace('"user "', '"user"')
    table.rows[table.at] = json.loads(long)
    key = next(iter(table.rows[table.at]))
    value = table.rows[table.at][key]
    if isinstance(value, str):
        table.rows[table.at][key] = "word " * dice.choice((400, 40_000))
    else:
        value[-1]["content" if key == "messages" else "value"] = "word " * dice.choice((400, 40_000))
    planted = table.either(json.dumps(table.rows[table.at]).encode())
    planted.expected, planted.config = Read(len(table.rows), 1), {"max_length": 1000}
    if dice.random() < 0.4:
        planted.config = {"max_length": 1000, "over_length": "error"}
        line = table.at + (2 if planted.source.endswith(".json") else 1)
        planted.expected = Refused(planted.source, line, ("tokens, more than 1000",))
    return planted


def record_width(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("prompt_completion", "alpaca"))
    separator = dice.choice((",", "\t"))
    lines = table.csv(separator)
    line = table.at + 1
    lines[line] = dice.choice(('"only one"', separator.join(['"a"'] * 3), separator.join(['"a"'] * 9)))
    return table.put_csv(lines, line + 1, ("fields where the header has 2",), separator)


def header_defect(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, FLAT)
    lines = table.csv()
    lines[0], word = dice.choice(
        (("text,text", "'text' appears twice"), ("text,", "column 2 of the header has no name"))
    )
    return table.put_csv(lines, 1, (word,))


def quote_defect(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("prompt_completion",))
    lines = table.csv()
    line = table.at + 1
    if dice.random() < 0.5:
        lines[line:] = ['"never closed, and so on']
        return table.put_csv(lines, line + 1, ("never closed",))
    lines[line] = dice.choice(('"a"b,"c"', 'a "quoted" word,c', 'a,5" wide'))
    return table.put_csv(lines, line + 1, ("a quote in the middle",))


def other_separator(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("prompt_completion",))
    lines = [line.replace('"', "").replace(",", " ") for line in table.csv(";", [["prompt", "completion"], ["a", "b"]])]
    return table.put_csv(lines, 2, ("fit no shape", "prompt;completion"))


def csv_encoding(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("text",))
    lines = [line.encode() for line in table.csv()]
    lines[table.at + 1] = b'"caf\xe9"'
    source = table.put("rows.csv", b"\n".join(lines))
    return Planted(source, Refused(source, table.at + 2, ("0xe9 is not UTF-8",)))


def good_csv(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, FLAT)
    separator, end = dice.choice((",", "\t")), dice.choice(("\n", "\r\n", "\r"))
    text = end.join(table.csv(separator)) + dice.choice(("", end, end + end))
    source = table.put(
        "rows.csv" if separator == "," else "rows.tsv", dice.choice((b"", b"\xef\xbb\xbf")) + text.encode()
    )
    return Planted(source, Read(len(table.rows)))


def broken_parquet(dice: random.Random, folder: Path) -> Planted:
    planted = Table.of(dice, folder).parquet()
    path = Path(planted.source)
    data = path.read_bytes()
    match dice.randrange(3):
        case 0:
            path.write_bytes(data[: dice.randrange(len(data))])
        case 1:
            path.write_bytes(dice.randbytes(200))
        case _:
            path.write_bytes(data[:-8] + dice.randbytes(4) + b"PAR1")
    planted.expected = Refused(planted.source, 1, ("not readable as Parquet",))
    return planted


def flipped_parquet(dice: random.Random, folder: Path) -> Planted:
    """Parquet pages carry no checksum by default: a flip is seen or is not, and never more than that."""
    planted = Table.of(dice, folder).parquet()
    path = Path(planted.source)
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 1, 5, 50))):
        data[dice.randrange(4, len(data) - 4)] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    planted.expected = None
    return planted


def parquet_types(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, FLAT)
    key = FIRST_FIELD[table.shape]
    value, word = dice.choice(((None, "null"), (3, "a number"), (b"raw", "a bytes"), (["a"], "an array")))
    table.rows = [{**each, key: value} for each in table.rows] if value is not None else table.rows
    table.rows[table.at if value is None else 0][key] = value
    line = table.at + 1 if value is None else 1
    planted = table.parquet()
    planted.expected = Refused(planted.source, line, (f"'{key}'", word))
    return planted


def parquet_twice(dice: random.Random, folder: Path) -> Planted:
    """Two columns of one name: the second would win in silence."""
    table = Table.of(dice, folder, ("text",))
    column = pa.array([each["text"] for each in table.rows])
    path = folder / "rows.parquet"
    pq.write_table(pa.table([column, column], names=["text", "text"]), path)
    return Planted(str(path), Refused(str(path), 0, ("'text' appears twice",)))


def no_rows(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder)
    name, content = dice.choice(
        (
            ("rows.jsonl", b""),
            ("rows.jsonl", b"\n \n\t\n"),
            ("rows.jsonl", b"\xef\xbb\xbf"),
            ("rows.json", b""),
            ("rows.json", b"[]"),
            ("rows.json", b" [\n]\n"),
            ("rows.csv", b""),
            ("rows.csv", b"text\n"),
            ("rows.tsv", b"prompt\tcompletion"),
        )
    )
    return Planted(table.put(name, content), Refused("data.train", 0, ("there are no rows",)))


def empty_parquet(dice: random.Random, folder: Path) -> Planted:
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    return Planted(str(path), Refused("data.train", 0, ("there are no rows",)))


def nowhere(dice: random.Random, folder: Path) -> Planted:
    (folder / "train.jsonl").write_text("{}")
    name = dice.choice(("tran.jsonl", "nothing/at/all.jsonl", "*.parquet", "", "a\x00b.jsonl", "x" * 300))
    source = f"{folder}/{name}" if name else str(folder / "empty")
    (folder / "empty").mkdir()
    return Planted(source, Refused(source.replace("\0", "\\x00"), 0, ()))


def not_a_file(dice: random.Random, folder: Path) -> Planted:
    path = folder / "rows.jsonl"
    if dice.random() < 0.5:
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    return Planted(str(path), Refused(str(path), 0, ()))


def texts(dice: random.Random, folder: Path) -> Planted:
    """A folder of plain text with files that are none: each is a row, used or dropped with its reason."""
    good = dice.randint(1, 4)
    for number in range(good):
        (folder / f"good{number}.txt").write_text(said(dice))
    bad = {"binary.txt": b"\x7fELF\0\1", "latin.txt": b"caf\xe9", "empty.txt": b"", "nul.md": b"a\0b"}
    chosen = dice.sample(list(bad), dice.randint(1, 4))
    for name in chosen:
        (folder / name).write_bytes(bad[name])
    inner = folder / "inner"
    inner.mkdir()
    (inner / "loop").symlink_to(folder, target_is_directory=True)
    (folder / ".hidden").write_bytes(b"\xff")
    return Planted(str(folder), Read(good + len(chosen), len(chosen)))


def link_to_nothing(dice: random.Random, folder: Path) -> Planted:
    (folder / "good.txt").write_text("a")
    link = folder / "lost.txt"
    link.symlink_to(dice.choice(("lost.txt", "nowhere.txt")))
    return Planted(str(folder), Refused(str(link), 0, ("cannot be read",)))


def mixed_folder(dice: random.Random, folder: Path) -> Planted:
    Table.of(dice, folder).put("a.txt", b"text")
    Table.of(dice, folder).put(dice.choice(("b.jsonl", "b.csv", "b.parquet")), b"x")
    return Planted(str(folder), Refused(str(folder), 0, ("lie together",)))


def many_turns(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("messages",))
    turns = [{"role": role, "content": "a"} for _ in range(dice.choice((300, 1500))) for role in ("user", "assistant")]
    table.rows[table.at] = {"messages": turns}
    planted = table.either(json.dumps(table.rows[table.at]).encode())
    planted.expected = Read(len(table.rows), 1)
    return planted


def long_line(dice: random.Random, folder: Path) -> Planted:
    table = Table.of(dice, folder, ("text",))
    table.rows[table.at] = {"text": "a" * dice.choice((100_000, 1_000_000))}
    planted = table.either(json.dumps(table.rows[table.at]).encode())
    planted.expected = Read(len(table.rows))
    return planted


NUMBER = b'{"text": "a", "n": %s}'
DEFECTS: Mapping[str, Defect] = {
    "cut off": cut_off,
    "not JSON": raw(
        (b"{prompt: 1}", ("column 2",)),
        (b"{'prompt': 'a'}", ("column 2",)),
        (b'{"text": "a",}', ("column",)),
        (b'{"text" "a"}', ("column",)),
        (b'{"text": "a\x01"}', ("column", "control")),
        (b'{"text": "\\x"}', ("column", "escape")),
        (b"nonsense", ("column",)),
    ),
    "two rows a line": lines_only((b'{"text": "a"}{"text": "b"}', ("more follows",))),
    "not closed": lines_only(
        (b'{"text": "a"', ("column",)), (b'{"text": "a', ("column",)), (b'{"text": ["a"', ("column",))
    ),
    "a mark in the middle": lines_only((b'\xef\xbb\xbf{"text": "a"}', ("column 1",))),
    "NUL bytes": lines_only((b"\0" * 40, ("column 1",))),
    "a key twice": raw(
        (b'{"text": "a", "text": "b"}', ("'text' appears twice",)),
        (b'{"messages": [{"role": "user", "role": "user", "content": "a"}]}', ("'role' appears twice",)),
    ),
    "numbers that are none": raw(
        (NUMBER % b"NaN", ("NaN",)),
        (NUMBER % b"-Infinity", ("-Infinity",)),
        (NUMBER % b"1e999", ("too large",)),
        (NUMBER % (b"9" * 5000), ("4300 digits",)),
    ),
    "depth": raw((b"[" * 100_000, ("nested too deeply",)), (b'{"a":' * 50_000, ("nested too deeply",))),
    "half a character": raw((b'{"text": "a\\ud800"}', ("surrogate",)), (b'{"text": "\\udc00\\ud800"}', ("surrogate",))),
    "no object": raw(*((word, ("a row is an object",)) for word in (b"[1]", b'"a"', b"3", b"null", b"true", b"[]"))),
    "not UTF-8": not_utf8,
    "another encoding": other_encoding,
    "another format": other_format,
    "unusual and good": unusual,
    "an array": array_defect,
    "wrong type": wrong_type,
    "wrong turn": wrong_turn,
    "wrong conversation": wrong_conversation,
    "another shape": another_shape,
    "wrong columns": wrong_columns,
    "two shapes at once": two_shapes_at_once,
    "stated otherwise": stated_otherwise,
    "nothing to learn": nothing_to_learn,
    "too long": too_long,
    "CSV record": record_width,
    "CSV header": header_defect,
    "CSV quotes": quote_defect,
    "CSV separator": other_separator,
    "CSV encoding": csv_encoding,
    "CSV good": good_csv,
    "Parquet broken": broken_parquet,
    "Parquet flipped": flipped_parquet,
    "Parquet types": parquet_types,
    "Parquet column twice": parquet_twice,
    "Parquet empty": empty_parquet,
    "no rows": no_rows,
    "nowhere": nowhere,
    "not a file": not_a_file,
    "texts": texts,
    "a link to nothing": link_to_nothing,
    "a mixed folder": mixed_folder,
    "many turns": many_turns,
    "a long line": long_line,
}


def planted(seed: int, number: int, folder: Path) -> tuple[str, Planted]:
    """Case `number`: each defect comes in turn, its details by the dice."""
    name = list(DEFECTS)[number % len(DEFECTS)]
    return name, DEFECTS[name](random.Random(f"{seed}/{number}"), folder)
