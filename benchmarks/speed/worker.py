"""A side in a process of its own: `python -m benchmarks.speed.worker`, its order on the first line of its input.

What libraries print goes to stderr: stdout carries answers alone.
"""

import os
import sys
from importlib import import_module

from benchmarks.speed.gate import Gate, Home

SIDES = {
    "lorica": "of_lorica",
    "peft": "of_peft",
    "full": "of_transformers",
    "trainer": "of_trainer",
    "encoder": "encoder",
    "products": "products",
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gate = Gate(sys.stdin, answers)
    try:
        order = gate.order()
        if order["side"] not in SIDES:
            raise ValueError(f"no side {order['side']!r}; there are {', '.join(SIDES)}")
        import_module(f"benchmarks.speed.sides.{SIDES[order['side']]}").run(order, gate)
    except Home:
        return
    except Exception as error:
        gate.tell({"failed": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
