"""What each method trains and what its step costs on the embedded base: `python benchmarks/methods.py`.

Writes `benchmarks/results/methods.json`; `lorica methods --measure` shows the same of any base.
"""

import json
from pathlib import Path

from machine import machine

from lorica.api import method_table

RESULT = Path(__file__).parent / "results" / "methods.json"


def main() -> None:
    table = method_table(measure=True)
    print(table)
    RESULT.write_text(
        json.dumps({"base": table.base, "methods": table.to_dict(), "machine": machine()}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
