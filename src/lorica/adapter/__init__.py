"""Adapters: plan -> attach -> save and load -> inspect, merge, detach; many on one base in a Bank."""

from lorica.adapter.attach import attach
from lorica.adapter.attached import Attached
from lorica.adapter.bank import Bank
from lorica.adapter.file import AdapterFile, read, write
from lorica.adapter.inspect import Inspection, inspect
from lorica.adapter.load import load
from lorica.adapter.merge_checkpoint import Merged, merge_checkpoint
from lorica.adapter.plan import Plan, plan

__all__ = [
    "AdapterFile",
    "Attached",
    "Bank",
    "Inspection",
    "Merged",
    "Plan",
    "attach",
    "inspect",
    "load",
    "merge_checkpoint",
    "plan",
    "read",
    "write",
]
