"""What a run costs before it starts: bytes by part, arithmetic a token, and whether it fits the machine."""

from lorica.budget.cautions import Caution, Training, cautions
from lorica.budget.corrections import Correction, correction, remember
from lorica.budget.devices import DEVICES, Device, memory_in_bytes
from lorica.budget.elsewhere import Elsewhere
from lorica.budget.fitting import Choice, Fit
from lorica.budget.forecast import Forecast, flops_a_token, forecast
from lorica.budget.machine import ROOM, Machine, machine, machine_called, rated
from lorica.budget.measured import Measured, Measurement, difference, spoken
from lorica.budget.memory import Memory, Workload, gigabytes
from lorica.budget.rate import product_gflops
from lorica.budget.recomputing import fewest_fetched, fewest_recomputed
from lorica.budget.room import require_room

__all__ = [
    "DEVICES",
    "ROOM",
    "Caution",
    "Choice",
    "Correction",
    "Device",
    "Elsewhere",
    "Fit",
    "Forecast",
    "Machine",
    "Measured",
    "Measurement",
    "Memory",
    "Training",
    "Workload",
    "cautions",
    "correction",
    "difference",
    "fewest_fetched",
    "fewest_recomputed",
    "flops_a_token",
    "forecast",
    "gigabytes",
    "machine",
    "machine_called",
    "memory_in_bytes",
    "product_gflops",
    "rated",
    "remember",
    "require_room",
    "spoken",
]
