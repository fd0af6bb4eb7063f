"""Whether LoRA on a real encoder helps where it never trained: `python benchmarks/docstring_pairs.py`.

Runs `examples/docstring_pairs.py` by a plain loop and by transformers' Trainer, and writes
`benchmarks/results/docstring_pairs.json`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "docstring_pairs.json"


def run(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "docstring_pairs.py"), *options]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout[done.stdout.index("\n{\n") if "\n{\n" in done.stdout else 0 :])


def main() -> None:
    result = {
        "claim": "accuracy on pairs from modules that were never trained on rises, with an interval above zero",
        "runs": [run(), run("--trainer")],
        "machine": machine(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
