"""A run killed by SIGKILL at random instants ends with the bits of the run that nobody killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = 20


def test_a_run_killed_at_twenty_random_instants_ends_with_the_same_bits(tmp_path):
    server = Path(__file__).with_name("killed_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(server), str(tmp_path), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["different"] == []
    assert told["kills"] >= KILLS
    assert told["groups"] == ["adapter", "best", "generators", "life", "optimizer"]
    assert (told["steps"], told["lines"]) == (15, 15 + 4)
