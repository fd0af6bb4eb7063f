"""The quickstart's figures on this machine: `python benchmarks/quickstart.py`.

Runs `lorica quickstart --json` in a process of its own and writes `benchmarks/results/quickstart.json`.
"""

import json
import subprocess
import sys
from pathlib import Path

from machine import machine

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "quickstart.json"


def main() -> None:
    command = [sys.executable, "-m", "lorica", "quickstart", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    result = {**json.loads(done.stdout), "machine": machine()}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
