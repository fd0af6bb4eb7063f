"""What a run costs before it starts: bytes by part, arithmetic a token, and whether it fits the machine."""

from lorica.budget.cautions import Caution, Training, cautions
from lorica.budget.forecast import Forecast, forecast
from lorica.budget.machine import Machine, machine
from lorica.budget.memory import Memory, Workload
from lorica.budget.rate import product_gflops

__all__ = [
    "Caution",
    "Forecast",
    "Machine",
    "Memory",
    "Training",
    "Workload",
    "cautions",
    "forecast",
    "machine",
    "product_gflops",
]
