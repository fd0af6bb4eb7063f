"""What a task learns and how it is scored: rows to labelled batches, a loss, its unit and its metrics."""

from collections.abc import Mapping
from types import MappingProxyType

from lorica.tasks.causal_lm import CausalLanguageModelling
from lorica.tasks.contract import Draw, Task

TASKS: Mapping[str, Task] = MappingProxyType({"causal_lm": CausalLanguageModelling()})
"""Tasks by the name that a recipe gives them."""

__all__ = ["TASKS", "CausalLanguageModelling", "Draw", "Task"]
