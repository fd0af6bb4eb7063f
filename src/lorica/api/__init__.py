"""The Python of Lorica: thin functions that put together rooms which do not know each other."""

from lorica.adapter import Bank, inspect, load, overlap
from lorica.api.advising import advise
from lorica.api.answers import Answer, Speaker, generate
from lorica.api.collecting import statistics
from lorica.api.combining import combine, resize
from lorica.api.fitting import best_for
from lorica.api.looking import data_report
from lorica.api.machinery import Machinery, doctor
from lorica.api.merging import class_of, merge
from lorica.api.method_table import MethodTable, method_table
from lorica.api.planning import plan
from lorica.api.recorded import unverified
from lorica.api.rehearsing import measure
from lorica.api.residuals import Residual, residual
from lorica.api.scoring import Score, evaluate
from lorica.api.tasked import attach, load_base
from lorica.api.training import fit, next_steps, train
from lorica.api.verifying import verify
from lorica.models import add_tokens

__all__ = [
    "Answer",
    "Bank",
    "Machinery",
    "MethodTable",
    "Residual",
    "Score",
    "Speaker",
    "add_tokens",
    "advise",
    "attach",
    "best_for",
    "class_of",
    "combine",
    "data_report",
    "doctor",
    "evaluate",
    "fit",
    "generate",
    "inspect",
    "load",
    "load_base",
    "measure",
    "merge",
    "method_table",
    "next_steps",
    "overlap",
    "plan",
    "residual",
    "resize",
    "statistics",
    "train",
    "unverified",
    "verify",
]
