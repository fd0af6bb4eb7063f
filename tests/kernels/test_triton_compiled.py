"""Kernels in Triton fit the GPUs that people have: by the committed result of compiling them for each."""

import json
from pathlib import Path

import pytest
from triton_against_float64 import DEVICE  # noqa: F401  where there is no triton, nothing is imported from here

from benchmarks.triton_compiled import CASES, RESULT, ROOM, digest, kernels
from lorica.kernels.choice import OPS

TOLD = json.loads(Path(RESULT).read_text())
ROWS = TOLD["kernels"]
MUCH = 128
"""Bytes of a thread in memory: a few of its 255 registers."""


def test_the_result_is_of_the_kernels_as_they_stand():
    assert TOLD["digest"] == digest(), "compile them again: python -m benchmarks.triton_compiled"


@pytest.mark.parametrize("capability", ROOM)
def test_every_kernel_was_compiled_and_no_launch_is_refused_for_want_of_shared_memory(capability):
    rows = [row for row in ROWS if row["capability"] == capability]
    assert {row["kernel"] for row in rows} == set(kernels())
    assert [row for row in rows if row["shared"] > ROOM[capability]] == []


def test_hardly_a_register_is_spilled():
    assert [row for row in ROWS if row["spilled"] > MUCH] == []


@pytest.mark.parametrize("op", [op for op in CASES if op in OPS and OPS[op].widest])
def test_the_widest_that_an_op_is_chosen_for_was_compiled(op):
    assert max(row["width"] for row in ROWS if row["op"] == op) >= OPS[op].widest
