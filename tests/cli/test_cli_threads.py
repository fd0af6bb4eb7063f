"""How torch's threads wait, which is decided before torch is loaded."""

import os
import subprocess
import sys

import pytest

from lorica.cli.entry import SPINS

CODE = (
    "import os, sys; from lorica.cli.entry import run; run(['--version']); "
    "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, SPINS[1]), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing said", "a count of the user's", "a policy of the user's"],
)
def test_threads_sleep_early_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**environment, **given},
    )
    assert done.stdout.split()[-2:] == [expected, "False"]
