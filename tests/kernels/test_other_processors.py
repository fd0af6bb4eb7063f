"""Kernels as other processors get them, down to AVX2: the same tests hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorica.kernels import is_native
from lorica.kernels.native.build import WIDEST

HERE = Path(__file__).parent
OF_KERNELS = (
    "test_thin.py",
    "test_rowwise.py",
    "test_native_attention.py",
)
pytestmark = pytest.mark.skipif(
    not is_native("thin", torch.zeros(1, dtype=torch.bfloat16)), reason="no kernels in C for this processor"
)


@pytest.mark.parametrize("widest", ["AVX2", "AVX512_CORE", "AVX512_CORE_BF16"])
def test_products_hold_their_bounds_without(widest: str) -> None:
    files = [str(HERE / name) for name in OF_KERNELS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    held = {**os.environ, WIDEST: widest}
    ran = subprocess.run(command, env=held, capture_output=True, text=True, cwd=HERE.parents[1], check=False)
    assert ran.returncode == 0, ran.stdout
    assert "skipped" not in ran.stdout
