"""Files to labelled tokens: reading, the row shapes, masking, packing and the order of rows."""

from lorica.data.config import DataConfig, HoldOut
from lorica.data.dataset import Dataset
from lorica.data.example import Answered, Dropped, Example
from lorica.data.faces import MarksGeneration, Renderer, Tokenizer
from lorica.data.loading import from_rows, in_memory, load, rows_of, taught
from lorica.data.order import Schedule, epoch_order, micro_batches, rectangles, steps
from lorica.data.pack import Packed, Padded, pack, pad
from lorica.data.report import DataReport, Purpose
from lorica.data.rows import Row
from lorica.data.teaching import RowByRow, Teacher
from lorica.data.template import DEFAULT_TEMPLATE, JinjaRenderer, dated, own_renderer, text_of

__all__ = [
    "DEFAULT_TEMPLATE",
    "Answered",
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
    "Purpose",
    "Renderer",
    "Row",
    "RowByRow",
    "Schedule",
    "Teacher",
    "Tokenizer",
    "dated",
    "epoch_order",
    "from_rows",
    "in_memory",
    "load",
    "micro_batches",
    "own_renderer",
    "pack",
    "pad",
    "rectangles",
    "rows_of",
    "steps",
    "taught",
    "text_of",
]
