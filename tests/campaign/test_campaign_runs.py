"""A sample of the campaign on runs (`make campaign` is the whole): everything holds, and every broken Lorica is found.

In a process of its own: the campaign forks, which a process that has run a backward pass may not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = 7


def test_a_sample_of_the_campaign_holds_and_its_controls_are_red() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "campaign.runs", "--sample"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == PARTS
    for name, part in found.items():
        if "not_tried" in part:
            print(f"{name}: {part['not_tried']}")
            continue
        assert part["cases"] > 0, name
        assert part["failures"] == 0, part["first_failures"]
        assert [control for control, shown in part["controls"].items() if not shown["red"]] == [], name
    assert done.returncode == 0, done.stderr
