"""Kernels as other processors get them, from AVX2 to tiles: the same tests hold.

What a processor has too much is kept from the compiler; what it lacks is done in software, which needs AVX-512.  What
it is itself is tested where everything is.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorica.kernels import is_native
from lorica.kernels.native.build import WIDEST, processor_flags

HERE = Path(__file__).parent
OF_PRODUCTS = ("test_thin.py", "test_rowwise.py", "test_native_attention.py")
OF_LINEARS = ("test_tiled.py",)
OF_LANES = ("test_native_rows.py", "test_native_gain.py", "test_paged_attention.py")
pytestmark = pytest.mark.skipif(
    not is_native("thin", torch.zeros(1, dtype=torch.bfloat16)), reason="no kernels in C for this processor"
)


FLAGS = processor_flags()
LESS = [
    (widest, files)
    for widest, files, has_more in (
        ("AVX2", OF_PRODUCTS + OF_LINEARS + OF_LANES, "avx512bw" in FLAGS),
        ("AVX512_CORE", OF_PRODUCTS, "avx512_bf16" in FLAGS),
        ("AVX512_CORE_BF16", OF_PRODUCTS, "amx_bf16" in FLAGS),
    )
    if has_more
]
MORE = [
    more
    for more, lacks in (("pairs", "avx512_bf16" not in FLAGS), ("tiles", "amx_bf16" not in FLAGS))
    if lacks and "avx512bw" in FLAGS
]


@pytest.mark.parametrize(("widest", "files"), LESS)
def test_kernels_hold_their_bounds_without(widest: str, files: tuple[str, ...]) -> None:
    hold(files, {WIDEST: widest})


@pytest.mark.parametrize("more", MORE)
def test_kernels_hold_their_bounds_with(more: str) -> None:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    hold(OF_PRODUCTS + OF_LINEARS, {"LORICA_IN_SOFTWARE": more, "PYTHONPATH": path, WIDEST: ""}, "-p", "in_software")


def hold(files: tuple[str, ...], environment: dict[str, str], *words: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words]
    ran = subprocess.run(
        [*command, *(str(HERE / name) for name in files)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "skipped" not in ran.stdout
