"""What is left of two adapters that became one: `python benchmarks/combining.py`.

One adapter of the embedded base learns C from header files of this Python installation, the other English prose from
topics of its `help()`.  They are combined in every way and scored on held-out files of both kinds, beside the base
and the two alone; then one is resized.  The overlap is told of the two, which began from one seed, and of the first and
one that learned the same prose from another.  Writes `benchmarks/results/combining.json`.
"""

import json
import pydoc_data.topics
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from shutil import rmtree
from statistics import fmean
from typing import Any

from machine import machine

import lorica

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "combining.json"
PLACE = ROOT / "runs" / "combining"
PIECE, EVERY = 900, 8
"""Characters of a row; of each so many texts one is held out."""
METHODS = {"c": lorica.LoRA(r=16, alpha=32), "prose": lorica.LoRA(r=8, alpha=16)}
STEPS = {"steps": 60, "rows_per_step": 8, "learning_rate": 2e-3, "warmup": 0.1, "seed": 0}
HALF, ONE, UNEVEN = (0.5, 0.5), (1.0, 1.0), (0.7, 0.3)
WAYS: tuple[tuple[tuple[float, float], dict[str, Any]], ...] = (
    (HALF, {}),
    (ONE, {}),
    (UNEVEN, {}),
    (HALF, {"how": "svd", "r": 16}),
    (ONE, {"how": "svd", "r": 16}),
    (HALF, {"how": "svd", "r": 4}),
    (HALF, {"how": "ties", "r": 16}),
    (HALF, {"how": "ties", "r": 16, "density": 0.2}),
    (HALF, {"how": "dare", "r": 16}),
    (HALF, {"how": "dare", "r": 16, "density": 0.9}),
    (HALF, {"how": "dare_ties", "r": 16}),
    (HALF, {"how": "magnitude", "r": 16}),
)
"""Weights of C and prose, and how they are combined; pruning keeps half of the entries unless it says otherwise."""
SIZES: tuple[dict[str, Any], ...] = ({"r": 8}, {"r": 4}, {"r": 2}, {"energy": 0.99}, {"energy": 0.9})


def texts() -> dict[str, list[str]]:
    headers = sorted(Path(sysconfig.get_paths()["include"]).rglob("*.h"))
    topics = pydoc_data.topics.topics
    return {"c": [path.read_text() for path in headers], "prose": [topics[name] for name in sorted(topics)]}


def rows(held: Iterable[str]) -> list[dict[str, str]]:
    return [{"text": text[at : at + PIECE]} for text in held for at in range(0, len(text), PIECE)]


def written() -> dict[str, dict[str, Path]]:
    """The rows of each kind to train and to score on."""
    found: dict[str, dict[str, Path]] = {}
    for kind, all_texts in texts().items():
        parts = {
            "train": [text for number, text in enumerate(all_texts) if number % EVERY],
            "held": [text for number, text in enumerate(all_texts) if not number % EVERY],
        }
        found[kind] = {part: PLACE / f"{kind}-{part}.jsonl" for part in parts}
        for part, held in parts.items():
            lines = [json.dumps(row) + "\n" for row in rows(held)]
            found[kind][part].write_text("".join(lines if part == "train" else lines[:60]))
    return found


def taught(kind: str, rows: Path, seed: int) -> Path:
    place = PLACE / f"{kind}-{seed}"
    attached = lorica.attach(lorica.load_base("embedded"), METHODS[kind], seed=seed)
    lorica.fit(attached, train=str(rows), max_length=256, output=PLACE / f"run-{kind}-{seed}", **STEPS)
    return attached.save(place)


def overlap(one: Path, other: Path) -> dict[str, float]:
    """Means over the sites."""
    found = lorica.overlap(one, other)
    spaces = {"inputs": [site.inputs for site in found.sites], "outputs": [site.outputs for site in found.sites]}
    phis = {f"phi_{name}": fmean(each.phi for each in held) for name, held in spaces.items()}
    chances = {f"chance_{name}": fmean(each.chance for each in held) for name, held in spaces.items()}
    return {name: round(value, 4) for name, value in {"cosine": found.cosine, **phis, **chances}.items()}


def main() -> None:
    rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    files = written()
    c, prose = (taught(kind, files[kind]["train"], seed=0) for kind in METHODS)

    def losses(adapter: Path | None, **options: Any) -> dict[str, float]:
        found = {kind: lorica.evaluate(adapter, files[kind]["held"], **options).metrics["loss"] for kind in files}
        return {kind: round(loss, 4) for kind, loss in found.items()}

    table: list[dict[str, Any]] = [{"adapter": "none, the base", **losses(None, model="embedded")}]
    table += [{"adapter": place.name.partition("-")[0], **losses(place)} for place in (c, prose)]
    for number, (weights, options) in enumerate(WAYS):
        made = lorica.combine({c: weights[0], prose: weights[1]}, PLACE / f"made-{number}", **options)
        told = {"error": round(made.error, 4), "megabytes": round(made.bytes / 1e6, 2)}
        table.append({"weights": weights, **made.how.to_dict(), **losses(PLACE / f"made-{number}"), **told})
    sizes: list[dict[str, Any]] = []
    for number, size in enumerate(SIZES):
        small = lorica.resize(c, PLACE / f"sized-{number}", **size)
        rank, kept = fmean(site.made.rank for site in small.sites), round(small.energy, 4)
        told = {"mean_rank": round(rank, 2), "energy_kept": kept, "megabytes": round(small.bytes / 1e6, 2)}
        sizes.append({**size, **told, **losses(PLACE / f"sized-{number}")})
    other = taught("prose", files["prose"]["train"], seed=1)
    result = {
        "losses": table,
        "c_resized": sizes,
        "overlap": {"one_seed": overlap(c, prose), "two_seeds": overlap(c, other)},
        "machine": machine(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
