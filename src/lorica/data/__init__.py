"""Files to labelled tokens: reading, the row shapes, masking, packing and the order of rows."""

from lorica.data.config import DataConfig, HoldOut
from lorica.data.dataset import Dataset
from lorica.data.example import Dropped, Example
from lorica.data.faces import MarksGeneration, Renderer, Tokenizer
from lorica.data.loading import from_rows, load
from lorica.data.order import Schedule, epoch_order, micro_batches, steps
from lorica.data.pack import Packed, Padded, pack, pad
from lorica.data.report import DataReport
from lorica.data.template import DEFAULT_TEMPLATE, JinjaRenderer, own_renderer

__all__ = [
    "DEFAULT_TEMPLATE",
    "DataConfig",
    "DataReport",
    "Dataset",
    "Dropped",
    "Example",
    "HoldOut",
    "JinjaRenderer",
    "MarksGeneration",
    "Packed",
    "Padded",
    "Renderer",
    "Schedule",
    "Tokenizer",
    "epoch_order",
    "from_rows",
    "load",
    "micro_batches",
    "own_renderer",
    "pack",
    "pad",
    "steps",
]
