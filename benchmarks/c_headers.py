"""What adapting the embedded base to C teaches and costs: `python benchmarks/c_headers.py`.

Trains `recipes/c-headers.yaml` with the command line, then evaluates base and adapter on the held-out header files and
on Python files that pretraining held out.  Writes `benchmarks/results/c_headers.json`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "c_headers.json"
RUN = ROOT / "runs" / "c-headers"


def lorica(*words: str) -> dict[str, Any]:
    """One command of the installed program, and the JSON it prints."""
    command = [sys.executable, "-m", "lorica", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def python_held_out(folder: Path) -> Path:
    """Files of the standard library that pretraining never trained on, copied to a folder."""
    sys.path.insert(0, str(ROOT / "pretraining"))
    from corpus import is_held_out, standard_library

    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(filter(is_held_out, standard_library())):
        (folder / f"{number:03}.txt").write_text(text)
    return folder


def main() -> None:
    run = lorica("train", "recipes/c-headers.yaml", *sys.argv[1:])
    python = python_held_out(ROOT / "runs" / "c-headers-python")
    base = lorica("eval", run["adapter"], "--data", str(python), "--base")
    adapted = lorica("eval", run["adapter"], "--data", str(python))
    lines = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    result = {
        "claim": "held-out C headers: loss falls by at least 0.5 nats a token",
        "c_headers": {
            "before": losses[0],
            "after": run["eval"]["eval_loss"],
            "fall": losses[0] - run["eval"]["eval_loss"],
        },
        "python": {"before": base["loss"], "after": adapted["loss"], "rise": adapted["loss"] - base["loss"]},
        "run": {key: run[key] for key in ("steps", "seconds", "tokens_per_second", "peak_bytes")},
        "machine": machine(),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
