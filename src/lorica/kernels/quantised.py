"""Quantised forms of FrozenWeight: four bits (NF4, FP4) and eight, with bitsandbytes' functions and bit for bit as it
has them.

nf4, fp4   w = c * level[code], c = absmax of a block of 64 in a row of the flattened W; two codes a byte, the first in
           the high half.  Doubly quantised, c = mean + s * map[byte], s a float32 for 256 of them: 4.127 bits a number
int8       w = code * c / 127, c = absmax of a row of W

Dettmers et al. 2023, arXiv:2305.14314, section 3; Dettmers et al. 2022, arXiv:2208.07339, section 2.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from math import ceil, prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica.errors import ModelError
from lorica.kernels.bitsandbytes import library
from lorica.kernels.native.linears import SIDE, Codes
from lorica.kernels.tiled import InTiles

Form = Literal["nf4", "fp4", "int8"]
BLOCK, SCALE_BLOCK = 64, 256
NARROW = (torch.float32, torch.bfloat16, torch.float16)
"""The types that bitsandbytes reads and writes."""
PIECE = 1 << 19
"""Numbers that are quantised, or made dense, at a time: 2 MB in float32, a whole number of blocks."""


class _Workspaces(threading.local):
    def __init__(self) -> None:
        self.held: dict[torch.dtype, Tensor] = {}


_workspaces = _Workspaces()


def workspace(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of this thread for one weight of this shape on the CPU: what it held before is gone.

    A new tensor for each product leaves holes that glibc cannot fill: 3.5 GB for a run that holds 1.5.
    """
    count = prod(shape)
    held = _workspaces.held.get(dtype)
    if held is None or held.numel() < count:
        _workspaces.held.pop(dtype, None)
        with torch.inference_mode(False):  # what is made in inference can be written to nowhere else
            held = _workspaces.held[dtype] = torch.empty(count, dtype=dtype)
    return held[:count].view(shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class FourBit(InTiles):
    """codes (N / 2, 1) uint8; absmax (N / block,), float32, or uint8 where it is quantised itself.

    Then scales (N / (256 block),) float32, offset () float32, and levels (256,) float32, the map of those bytes.
    """

    codes: Tensor
    absmax: Tensor
    scales: Tensor | None = None
    offset: Tensor | None = None
    levels: Tensor | None = None
    form: Form = "nf4"
    block: int = BLOCK
    scale_block: int = SCALE_BLOCK
    size: tuple[int, ...]
    kind: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    @property
    def dtype(self) -> torch.dtype:
        return self.kind

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def double(self) -> bool:
        return self.scales is not None

    @property
    def tiled(self) -> bool:
        """bitsandbytes' blocks are powers of two."""
        return self.block >= SIDE

    @property
    def at_hand(self) -> bool:
        return self.tiled

    def for_tiles(self) -> Codes:
        return Codes(self.codes, self._absmax(), self.size, levels_of(self.form), self.block)

    def dense(self) -> Tensor:
        return self._read(torch.empty(self.size, dtype=self.kind, device=self.device))

    def as_read(self, dtype: torch.dtype) -> Tensor:
        if self.device.type != "cpu":
            return self.dense().to(dtype)
        return self._read(workspace(self.size, self.kind)).to(dtype)

    def _read(self, W: Tensor) -> Tensor:
        """The numbers of this weight into W, piece by piece."""
        library()
        flat, codes, absmax = W.view(-1), self.codes.view(-1), self._absmax()
        pieces = max(1, PIECE // self.block) if self.device.type == "cpu" else len(absmax)
        kind = self.kind if self.kind in NARROW else torch.float32
        for first in range(0, len(absmax), pieces):
            at = slice(first * self.block, min((first + pieces) * self.block, len(flat)))
            part, scales = codes[at.start // 2 : (at.stop + 1) // 2], absmax[first : first + pieces]
            # as one row: with the real shape bitsandbytes' CPU kernel begins a block at each row, which is wrong where
            # a row is no whole number of blocks
            flat[at] = torch.ops.bitsandbytes.dequantize_4bit(
                part, scales, self.block, self.form, (at.stop - at.start,), kind
            )
        return W

    def _absmax(self) -> Tensor:
        if self.scales is None:
            return self.absmax
        read = torch.ops.bitsandbytes.dequantize_blockwise
        return read(self.absmax, self.scales, self.levels, self.scale_block, torch.float32).add_(self.offset)


@dataclass(frozen=True, eq=False, kw_only=True)
class EightBit(InTiles):
    """codes (d_out, d_in) int8, absmax (d_out,) float32."""

    codes: Tensor
    absmax: Tensor
    kind: torch.dtype
    form: Form = "int8"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.kind

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def tiled(self) -> bool:
        return True

    @property
    def at_hand(self) -> bool:
        return True

    def for_tiles(self) -> Codes:
        return Codes(self.codes, self._steps(), self.shape)

    def dense(self) -> Tensor:
        return self._read(torch.empty(self.shape, dtype=self.kind, device=self.device))

    def as_read(self, dtype: torch.dtype) -> Tensor:
        """Rounded once, to the type of what it is multiplied with."""
        if self.device.type != "cpu":
            return self._read(torch.empty(self.shape, dtype=dtype, device=self.device))
        return self._read(workspace(self.shape, dtype))

    def _read(self, W: Tensor) -> Tensor:
        rows = max(1, PIECE // self.codes.shape[1]) if self.device.type == "cpu" else len(self.codes)
        scales = self._steps().unsqueeze(1)
        for part, codes, scale in zip(W.split(rows), self.codes.split(rows), scales.split(rows), strict=True):
            part.copy_(codes * scale)
        return W

    def _steps(self) -> Tensor:
        """Between two codes of a row (d_out,)."""
        return self.absmax * (1 / 127)


Quantised = FourBit | EightBit


@cache
def levels_of(form: Form) -> Tensor:
    """(16,) float32, on the CPU."""
    return library().get_4bit_type(form, device="cpu").contiguous()


def quantised(W: Tensor, form: Form, double: bool = True) -> Quantised:
    """W (d_out, d_in), float, on any device, piece by piece: blocks do not know of one another."""
    if form == "int8":
        quantise, rows = library().int8_vectorwise_quant, max(1, PIECE // W.shape[1])
        pieces = [quantise(piece.to(torch.float16))[:2] for piece in W.split(rows)]
        codes, absmax = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return EightBit(codes=codes, absmax=absmax, kind=W.dtype)
    functional = library()
    flat = (W if W.dtype in NARROW else W.float()).reshape(-1)
    pieces = [torch.ops.bitsandbytes.quantize_4bit(piece, BLOCK, form, torch.uint8) for piece in flat.split(PIECE)]
    codes, absmax = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    plain = FourBit(codes=codes, absmax=absmax, form=form, size=tuple(W.shape), kind=W.dtype)
    if not double:
        return plain
    offset = absmax.mean()
    compressed, state = functional.quantize_blockwise(absmax - offset, blocksize=SCALE_BLOCK)
    return replace(plain, absmax=compressed, scales=state.absmax, offset=offset, levels=state.code)


def like(weight: Quantised, W: Tensor) -> Quantised:
    """W (d_out, d_in) stored in the form of this weight."""
    double = isinstance(weight, FourBit) and weight.double
    return quantised(W.to(weight.dtype), weight.form, double)


def blank(shape: tuple[int, int], dtype: torch.dtype, form: Form, double: bool = True) -> Quantised:
    """The tensors of such a weight without their values, on the device in force."""
    if form == "int8":
        return EightBit(codes=torch.empty(shape, dtype=torch.int8), absmax=torch.empty(shape[0]), kind=dtype)
    blocks = ceil(prod(shape) / BLOCK)
    codes = torch.empty(ceil(prod(shape) / 2), 1, dtype=torch.uint8)
    if not double:
        return FourBit(codes=codes, absmax=torch.empty(blocks), form=form, size=shape, kind=dtype)
    return FourBit(
        codes=codes,
        absmax=torch.empty(blocks, dtype=torch.uint8),
        scales=torch.empty(ceil(blocks / SCALE_BLOCK)),
        offset=torch.empty(()),
        levels=torch.empty(256),
        form=form,
        size=shape,
        kind=dtype,
    )


def tensors_of(weight: Quantised) -> dict[str, Tensor]:
    """Everything that is stored of it, by the name of its field."""
    values = {field.name: getattr(weight, field.name) for field in fields(weight)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def with_tensors(weight: Quantised, tensors: Mapping[str, Tensor]) -> Quantised:
    return replace(weight, **dict(tensors))


def bytes_of(weight: Quantised) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(weight).values())


def held_by(module: nn.Module) -> Quantised | None:
    """The quantised weight that a module holds: one of ours, or bitsandbytes'.  None where its weight is dense.

    ModelError where bitsandbytes has packed it anew for its own products, which loses a part of its scales.
    """
    own = getattr(module, "quantised_weight", None)
    if own is not None:
        return own()
    weight = module._parameters.get("weight")
    kind = type(weight).__name__
    if kind == "Params4bit":
        return _four_bit_of(weight, getattr(weight, "quant_state", None) or getattr(module, "quant_state", None))
    return _eight_bit_of(module, weight) if kind == "Int8Params" else None


def of_state(codes: Tensor, state: Any) -> FourBit:
    """From bitsandbytes' QuantState."""
    plain = FourBit(
        codes=codes.view(torch.uint8).reshape(-1, 1),
        absmax=state.absmax,
        form=state.quant_type,
        block=state.blocksize,
        size=tuple(state.shape),
        kind=state.dtype,
    )
    if not state.nested:
        return plain
    second = state.state2
    return replace(plain, scales=second.absmax, offset=state.offset, levels=second.code, scale_block=second.blocksize)


def _four_bit_of(weight: Any, state: Any) -> FourBit:
    if state is None:
        raise ModelError("a Linear4bit that is not quantised yet: move the model to its device first, model.to(...)")
    if getattr(state, "packing_format_for_cpu", False):
        raise ModelError(
            "bitsandbytes has packed the 4-bit weights for inference on this CPU, which rounds their scales; "
            "load the model again and attach before it is called"
        )
    return of_state(weight.detach().as_subclass(torch.Tensor), state)


def _eight_bit_of(module: Any, weight: Any) -> EightBit:
    codes = weight.CB if getattr(weight, "CB", None) is not None else module.state.CB
    absmax = weight.SCB if getattr(weight, "SCB", None) is not None else module.state.SCB
    if codes is None or absmax is None:
        raise ModelError("a Linear8bitLt that is not quantised yet: move the model to its device first, model.to(...)")
    dtype = torch.float16 if module.bias is None else module.bias.dtype
    return EightBit(codes=codes.detach().as_subclass(torch.Tensor), absmax=absmax, kind=dtype)
