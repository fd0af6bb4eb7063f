"""Measures a topic and writes it into `benchmarks/results/speed.json`, from which `docs/speed.md` is made.

make bench                                       all
python -m benchmarks.speed dense mixed           some: dense, untiled, avx512, avx2, mixed, full, dora, qlora, minilm,
                                                 linear, memory
python -m benchmarks.speed dense --quick         a tiny shape, one round: whether every side runs; nothing is kept
python -m benchmarks.speed --page                the page from the result as it is
"""

import json
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.speed.page import page
from benchmarks.speed.setting import Setting
from benchmarks.speed.topics import TOPICS
from benchmarks.speed.wanted import verdicts

ROOT = Path(__file__).parents[2]
CLAIM = "a training step of Lorica beside its peers in the same run, in time and memory, with the same losses"


def told(line: str) -> None:
    print(line, flush=True)


def write(root: Path, name: str, found: dict[str, Any]) -> None:
    """One topic takes its place in the result, and the page is made anew."""
    place = root / "benchmarks" / "results" / "speed.json"
    before = json.loads(place.read_text()) if place.exists() else {"claim": CLAIM, "topics": {}}
    topics = {**before["topics"], name: found}
    result = {**before, "topics": topics, "wanted": verdicts(topics)}
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(result, indent=1) + "\n")
    make_page(root)


def make_page(root: Path) -> None:
    result = json.loads((root / "benchmarks" / "results" / "speed.json").read_text())
    (root / "docs").mkdir(exist_ok=True)
    (root / "docs" / "speed.md").write_text(page(result))


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.speed", description=sys.modules[__name__].__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=" or ".join(TOPICS))
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="rounds in which every side has a turn")
    parser.add_argument("--timed", type=int, default=2, metavar="N", help="timed steps of a turn")
    parser.add_argument("--only", action="append", default=[], metavar="SIDE", help="leave out the other sides")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    strange = [name for name in options.topics if name not in TOPICS]
    if strange:
        parser.error(f"no topic {strange[0]!r}; there are {', '.join(TOPICS)}")
    if options.page:
        return make_page(ROOT)
    for name in options.topics or TOPICS:
        setting = _setting(options)
        found = {**TOPICS[name](setting, told), "machine": machine()}
        told(json.dumps(found.get("agreement")))
        if not setting.quick and not setting.only:
            write(ROOT, name, found)
    return None


def _setting(options: Any) -> Setting:
    setting = Setting.quickly() if options.quick else Setting.here()
    length = replace(setting.length, rounds=options.repetitions, timed=options.timed)
    return replace(setting, only=tuple(options.only), length=setting.length if options.quick else length)


if __name__ == "__main__":
    main()
