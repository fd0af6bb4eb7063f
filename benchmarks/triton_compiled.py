"""Kernels in Triton as machine code for GPUs that are not at hand: what each takes of one, and whether it has room.

    python -m benchmarks.triton_compiled      results/triton_compiled.json

Each op is called as on a GPU, at sizes of models that people train and at the widest that it is chosen for; in place of
a launch the kernel is compiled, by the assembler that Triton brings along.  Nothing runs, so nothing is timed.

shared      bytes of shared memory that a block asks for; a device refuses a launch of more than it has
registers   of a thread;  spilled: its bytes in memory for want of registers
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from lorica.kernels import DenseWeight, LowRank, Noise
from lorica.kernels import triton as room
from lorica.kernels.triton import attention, cross_entropy, low_rank, rms_norm, rotary, row_norms, swiglu

RESULT = Path(__file__).parent / "results" / "triton_compiled.json"
ROOM = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Shared memory of a block by compute capability: A100; RTX 30 (RTX 40, 8.9, has as much); H100 and H200; RTX 50.
CUDA Programming Guide, technical specifications per compute capability."""
HALVES, ALL = (torch.bfloat16, torch.float16), (torch.bfloat16, torch.float16, torch.float32)
TOKENS = 96


class Absent:
    """The driver of a GPU of this capability, as far as a compilation asks for one: device n is one of capability n,
    because Triton keeps what it compiled by device."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return self.target.arch  # type: ignore[return-value]

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def kernels() -> list[str]:
    """Every kernel that is launched, as FILE.NAME."""
    files = sorted(Path(str(room.__file__)).parent.glob("*.py"))
    return [f"{file.stem}{name}" for file in files for name in re.findall(r"^ +(_\w+)\[", file.read_text(), re.M)]


def digest() -> str:
    """Of the sources that are compiled."""
    whole = sha256()
    for file in sorted(Path(str(room.__file__)).parent.glob("*.py")):
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_(True)


def of_attention(dtype: torch.dtype, width: int) -> None:
    q, k, v = (drawn(TOKENS, heads, width, dtype=dtype) for heads in (8, 2, 2))
    attention.attention(q, k, v, (TOKENS - 26, 26)).sum().backward()


def of_loss(dtype: torch.dtype, width: int) -> None:
    cross_entropy.losses_and_gradient_(torch.randn(2, width).to(dtype), torch.tensor([1, 2]))


def of_norm(dtype: torch.dtype, width: int) -> None:
    rms_norm.rms_norm(drawn(TOKENS, width, dtype=dtype), drawn(width, dtype=dtype), 1e-6).sum().backward()


def of_rotary(dtype: torch.dtype, width: int) -> None:
    cos, sin = torch.randn(TOKENS, 1, width), torch.randn(TOKENS, 1, width)
    rotary.rotary(drawn(TOKENS, 32, width, dtype=dtype), cos, sin).sum().backward()
    with torch.no_grad():
        q, k = (drawn(TOKENS, heads, width, dtype=dtype) for heads in (32, 8))
        rotary.rotary_pair(q, k, cos, sin, torch.arange(TOKENS))


def of_swiglu(dtype: torch.dtype, width: int) -> None:
    swiglu.swiglu(drawn(TOKENS, width, dtype=dtype), drawn(TOKENS, width, dtype=dtype)).sum().backward()
    swiglu.swiglu_backward_(*(torch.randn(TOKENS, width).to(dtype) for _ in range(3)))


def of_low_rank(dtype: torch.dtype, rank: int) -> None:
    weight, noise = DenseWeight(torch.randn(512, 256).to(dtype)), Noise(0, 1, torch.arange(TOKENS))
    A, B = drawn(rank, 256, dtype=torch.float32), drawn(512, rank, dtype=torch.float32)
    for dropout in (0.0, 0.1):
        made = LowRank(A=A, B=B, scale=2.0, dropout=dropout, site=3)
        low_rank.low_rank_linear(drawn(TOKENS, 256, dtype=dtype), weight, None, made, noise).sum().backward()


def of_row_norms(dtype: torch.dtype, rank: int) -> None:
    weight = DenseWeight(torch.randn(512, 256).to(dtype))
    row_norms.row_norms(weight, torch.rand(512), torch.randn(rank, 256), torch.randn(512, rank), 2.0)


CASES: dict[str, tuple[Callable[[torch.dtype, int], None], tuple[torch.dtype, ...], tuple[int, ...]]] = {
    "attention": (of_attention, HALVES, (64, 96, 128)),
    "cross_entropy": (of_loss, ALL, (32000, 151936)),
    "rms_norm": (of_norm, ALL, (576, 4096, 8192, 32768)),
    "rotary": (of_rotary, ALL, (64, 128, 256, 512)),
    "swiglu": (of_swiglu, ALL, (14336,)),
    "low_rank": (of_low_rank, HALVES, (8, 64, 128)),
    "row_norms": (of_row_norms, ALL, (8, 64, 128)),
}
"""What calls an op, the types in which it is chosen, and widths, which for low-rank products are ranks."""


def compiled(capability: int) -> Iterator[dict[str, Any]]:
    """A row for each kernel, type and width: of its forms (with and without dropout, forward and back) the largest."""
    found: list[tuple[str, Any]] = []

    def launch(kernel: Any, grid: Any) -> Callable[..., None]:
        def keep(*arguments: Any, **sizes: Any) -> None:
            name = f"{Path(kernel.fn.__code__.co_filename).stem}{kernel.__name__}"
            found.append((name, kernel.run(*arguments, grid=grid, warmup=True, **sizes)))

        return keep

    driver.set_active(Absent(capability))  # type: ignore[arg-type]
    jit.JITFunction.__getitem__ = launch  # type: ignore[method-assign]
    for op, (call, dtypes, widths) in CASES.items():
        for dtype in dtypes:
            for width in widths:
                found.clear()
                call(dtype, width)
                used = [(name, _used(kernel)) for name, kernel in found]
                for name in dict.fromkeys(name for name, _ in found):
                    forms = [form for own, form in used if own == name]
                    most = {what: max(form[what] for form in forms) for what in forms[0]}
                    yield {"kernel": name, "op": op, "dtype": str(dtype)[6:], "width": width, **most}


def _used(kernel: Any) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        listing = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, spilled = re.search(r"REG:(\d+) STACK:(\d+)", listing.stdout).groups()  # type: ignore[union-attr]
    return {"shared": int(kernel.metadata.shared), "registers": int(registers), "spilled": int(spilled)}


def main() -> None:
    rows = []
    for capability, room_there in ROOM.items():
        for row in compiled(capability):
            rows.append({"capability": capability, **row})
            short = " TOO LARGE" if row["shared"] > room_there else ""
            print(*(f"{name} {value}" for name, value in rows[-1].items()), short, flush=True)
    told = {"digest": digest(), "triton": version("triton"), "room": ROOM, "kernels": rows}
    RESULT.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
