"""First evidence: `python -m benchmarks.evidence [minilm] [quickstart] [--so-far] [--time]`, all tracks by default.

What was stopped goes on: runs are kept in runs/evidence/.  Writes benchmarks/results/evidence.json and
docs/evidence.md.  --so-far runs nothing, and writes what the runs that are done say.  --time makes one short run of
each arm and says how long the whole will take; it keeps nothing.
"""

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.evidence.docstrings import Docstrings
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.page import page
from benchmarks.evidence.protocol import TESTING, TUNING, Protocol
from benchmarks.evidence.questions import Questions
from benchmarks.evidence.summary import MARGIN, summary
from benchmarks.evidence.track import Track
from benchmarks.evidence.tuning import POINTS
from benchmarks.machine import machine

ROOT = Path(__file__).parents[2]
TRACKS: dict[str, Callable[[], Track]] = {"minilm": Docstrings, "quickstart": Questions}
CLAIM = "LoRA r=8 is within two points of full fine-tuning at under 2 % of MiniLM's parameters"


def told(line: str) -> None:
    print(line, flush=True)


def ledger_of(track: Track, root: Path) -> Ledger:
    """Rows, lengths and arms that are not the same are other runs."""
    return Ledger.at(root / "runs" / "evidence" / f"{track.name}-{track.facts()['digest']}.jsonl")


def found_of(track: Track, protocol: Protocol) -> dict[str, Any]:
    """The part of the result that is about one track."""
    found = protocol.found()
    arms = summary(found["arms"])
    whole = [arm for arm in track.arms if arm.method is not None]
    done = all(len(arms.get(arm.name, {"test": ()})["test"]) == len(protocol.testing) for arm in whole)
    return {
        "metric": track.metric,
        "unit": track.unit,
        "facts": track.facts(),
        "length": found["length"],
        "lengths": found["lengths"],
        "complete": done,
        "protocol": {"rates": POINTS, "tuning_seeds": [*TUNING], "test_seeds": [*TESTING], "margin": MARGIN},
        "runs": len(protocol.ledger.done),
        "arms": arms,
        "machine": machine(),
    }


def write(root: Path, name: str, found: dict[str, Any]) -> None:
    """One track takes its place in the result, and the page is made anew."""
    place = root / "benchmarks" / "results" / "evidence.json"
    before = json.loads(place.read_text()) if place.exists() else {"claim": CLAIM, "tracks": {}}
    result = {**before, "tracks": {**before["tracks"], name: found}}
    text = json.dumps(result, indent=2) + "\n"
    for path, content in ((place, text), (root / "docs" / "evidence.md", page(json.loads(text)))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def timed(track: Track) -> None:
    """Seconds of processor time of one run of each arm at the shortest length, and what that makes of all of them on
    one thread."""
    length, each = track.lengths[0], {}
    for arm in track.arms:
        began = time.process_time()
        outcome = track.run(arm, rate=arm.rate, seed=TUNING[0], length=length, part="validation")
        each[arm.name] = time.process_time() - began
        share = f"{100 * outcome.trained / (outcome.total - outcome.trained):.2f} % trained"
        told(f"{track.name} {arm.name}: {each[arm.name]:.1f} s for {length} {track.unit}, {share}")
    runs = POINTS * len(TUNING) + len(TESTING)
    for longer in track.lengths:
        hours = sum(each.values()) * runs * longer / length / 3600
        told(f"{track.name}: about {hours:.1f} h if {longer} {track.unit} are kept")


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.evidence", description=sys.modules[__name__].__doc__)
    parser.add_argument("tracks", nargs="*", metavar="TRACK", help=" or ".join(TRACKS))
    parser.add_argument("--so-far", action="store_true")
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    strange = [name for name in options.tracks if name not in TRACKS]
    if strange:
        parser.error(f"no track {strange[0]!r}; there are {', '.join(TRACKS)}")
    for name in options.tracks or TRACKS:
        track = TRACKS[name]()
        if options.time:
            timed(track)
            continue
        found = found_of(track, Protocol(track, ledger_of(track, ROOT), told, so_far=options.so_far))
        write(ROOT, name, found)
    if not options.time:
        told((ROOT / "docs" / "evidence.md").read_text())


if __name__ == "__main__":
    main()
