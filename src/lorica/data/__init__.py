"""Files to labelled tokens: reading, the row shapes, masking, packing and the order of rows."""

from lorica.data.config import DataConfig, HoldOut
from lorica.data.dataset import Dataset, from_rows, load
from lorica.data.example import Dropped, Example
from lorica.data.faces import MarksGeneration, Renderer, Tokenizer
from lorica.data.order import Schedule, epoch_order, micro_batches, steps

__all__ = [
    "DataConfig",
    "Dataset",
    "Dropped",
    "Example",
    "HoldOut",
    "MarksGeneration",
    "Renderer",
    "Schedule",
    "Tokenizer",
    "epoch_order",
    "from_rows",
    "load",
    "micro_batches",
    "steps",
]
