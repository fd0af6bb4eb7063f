"""Adapters: plan -> attach -> save and load -> inspect, merge, detach; many on one base in a Bank."""

from lorica.adapter.attach import attach
from lorica.adapter.attached import Attached, UnfinishedWarning
from lorica.adapter.bank import Bank
from lorica.adapter.file import AdapterFile, read, write
from lorica.adapter.inspect import Inspection, inspect
from lorica.adapter.lineage import Lineage
from lorica.adapter.load import load
from lorica.adapter.merge_checkpoint import Merged, merge_checkpoint
from lorica.adapter.outcome import Combined, Resized
from lorica.adapter.overlap import Overlap, overlap
from lorica.adapter.plan import Plan, plan
from lorica.adapter.verify import Bare, Check, Verification, verify

__all__ = [
    "AdapterFile",
    "Attached",
    "Bank",
    "Bare",
    "Check",
    "Combined",
    "Inspection",
    "Lineage",
    "Merged",
    "Overlap",
    "Plan",
    "Resized",
    "UnfinishedWarning",
    "Verification",
    "attach",
    "inspect",
    "load",
    "merge_checkpoint",
    "overlap",
    "plan",
    "read",
    "verify",
    "write",
]
