"""A sample of the sweep of memory limits (`make campaign` is the whole): `lorica train` as a person starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of the address space is Linux's, and so is the supervisor")
def test_a_limited_run_is_done_in_smaller_parts_or_stops_in_one_line_and_its_control_is_red() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "ignore", "-m", "campaign.memory_limit", "--sample"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert {share: tally["failures"] for share, tally in found["limits"].items()} == {"0.3": [], "0.7": [], "1.1": []}
    assert "stopped" in found["limits"]["0.3"]["counts"]
    assert "done" in found["limits"]["1.1"]["counts"]
    assert found["control"]["failures"], "a supervisor that swallows the exit status goes unnoticed"
    assert done.returncode == 0, done.stderr
