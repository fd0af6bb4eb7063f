"""Bases: loading them, what of them can be edited, how each edit is installed, and running them."""

from lorica.models.checkpointing import checkpoint
from lorica.models.edits import install, parameter_of, weight_of
from lorica.models.entry import enter

__all__ = ["checkpoint", "enter", "install", "parameter_of", "weight_of"]
