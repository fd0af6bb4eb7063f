"""Bases: loading them, what of them can be edited, how each edit is installed, and running them."""

from lorica.models.chat import renderer
from lorica.models.checkpointing import checkpoint, recomputable
from lorica.models.edits import Undo, install, parameter_of, weight_of
from lorica.models.entry import enter
from lorica.models.fetched import fetched_layers, hosted
from lorica.models.fingerprint import fingerprint
from lorica.models.generate import generate
from lorica.models.heads import Head
from lorica.models.loading import load_base, load_tokenizer, shapes_only
from lorica.models.numerics import Numerics, numerics
from lorica.models.originals import original_weight
from lorica.models.probe import Probe, Reading
from lorica.models.quantised import Quantisation, quantisation_of
from lorica.models.vocabulary import add_tokens
from lorica.models.walking import context_limit, sites

__all__ = [
    "Head",
    "Numerics",
    "Probe",
    "Quantisation",
    "Reading",
    "Undo",
    "add_tokens",
    "checkpoint",
    "context_limit",
    "enter",
    "fetched_layers",
    "fingerprint",
    "generate",
    "hosted",
    "install",
    "load_base",
    "load_tokenizer",
    "numerics",
    "original_weight",
    "parameter_of",
    "quantisation_of",
    "recomputable",
    "renderer",
    "shapes_only",
    "sites",
    "weight_of",
]
