"""Which path an op takes: a function of device, dtype and shape."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorica import kernels
from lorica.kernels.choice import OPS, Choice, chosen, decided


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("device", "dtype", "triton", "why"),
    [
        ("mps", torch.float16, True, "mps"),
        ("cuda", torch.float64, True, "float64"),
        ("cuda", torch.bfloat16, False, "pip install triton"),
    ],
)
def test_what_triton_cannot_do_stays_with_torch(
    op: str, device: str, dtype: torch.dtype, triton: bool, why: str
) -> None:
    choice = decided(op, device, dtype, 64, triton, None)
    assert choice.path == "torch"
    assert why in choice.why or OPS[op].stays


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("dtype", "lacking", "path", "why"),
    [
        (torch.bfloat16, None, "native", ""),
        (torch.float32, None, "torch", "this is float32"),
        (torch.bfloat16, "no C compiler", "torch", "no C compiler"),
    ],
)
def test_a_cpu_takes_kernels_in_c_for_bfloat16_where_there_are_any(
    op: str, dtype: torch.dtype, lacking: str | None, path: str, why: str
) -> None:
    choice = decided(op, "cpu", dtype, 64, True, lacking)
    if OPS[op].native is None:
        assert choice == Choice("torch", "there is no kernel in C for it")
    else:
        reads = dtype in OPS[op].types
        assert choice.path == ("native" if reads and lacking is None else path)
        assert choice.why == OPS[op].native if choice.path == "native" else why in choice.why


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for op, rule in OPS.items():
        monkeypatch.setitem(OPS, op, replace(rule, tried=True))  # type: ignore[arg-type]


def test_a_kernel_that_has_not_run_on_a_device_is_not_taken() -> None:
    untried = [op for op, rule in OPS.items() if not (rule.tried or rule.stays)]
    assert all(
        "interpreter" in decided(op, "cuda", torch.bfloat16, 64, triton=True, lacking=None).why for op in untried
    )


@pytest.mark.usefixtures("tried")
def test_a_gpu_takes_triton_where_it_saves_passes_over_memory() -> None:
    paths = {op: decided(op, "cuda", torch.bfloat16, 64, triton=True, lacking=None).path for op in OPS}
    assert [op for op, path in paths.items() if path == "torch"] == [
        "gain",
        "paged_attention",
        "rowwise",
        "block",
        "linears",
        "thin",
        "low_rank",
    ]


@pytest.mark.usefixtures("tried")
def test_what_has_no_room_in_float32_on_most_gpus_stays_with_torch() -> None:
    kept = [op for op in OPS if "for half precision" in decided(op, "cuda", torch.float32, 64, True, None).why]
    assert kept == ["attention", "dropped_low_rank"]


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize("op", [op for op, rule in OPS.items() if rule.widest])
def test_what_is_too_wide_for_a_tile_stays_with_torch(op: str) -> None:
    widest = OPS[op].widest or 0
    assert decided(op, "cuda", torch.bfloat16, widest, triton=True, lacking=None).path == "triton"
    assert str(widest + 1) in decided(op, "cuda", torch.bfloat16, widest + 1, triton=True, lacking=None).why


def test_a_tensor_says_what_it_is() -> None:
    assert chosen("rms_norm", torch.zeros(2, 3)) == decided(
        "rms_norm", "cpu", torch.float32, 3, triton=True, lacking=None
    )
    assert chosen("attention", torch.zeros(2, 3, device="meta"), 200).path == "torch"


def test_every_op_of_the_table_has_its_file() -> None:
    files = {path.stem for path in (Path(kernels.__file__).parent / "triton").glob("*.py")}
    without = {op for op, rule in OPS.items() if rule.stays} - files
    assert {op.removeprefix("dropped_") for op in OPS} - without == files - {"__init__", "tiles", "dropout"}
    in_c = {path.stem for path in (Path(kernels.__file__).parent / "native").glob("*.c")}
    assert {op for op, rule in OPS.items() if rule.native} == in_c
