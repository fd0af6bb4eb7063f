"""The engine: continuous batching over one base, with an adapter of its own for every request.

Request -> Engine.submit -> Document: waiting -> running (decode, prefill) -> ended;   events to the listener
folder  -> Shelf.load    -> Generation: disk <-> host <-> device
"""

from lorica.serve.engine.engine import Engine
from lorica.serve.engine.generation import Described, Generation
from lorica.serve.engine.limits import Limits
from lorica.serve.engine.merged import Merged
from lorica.serve.engine.request import Ended, Event, Listener, Request, Ticket, Usage, Wrote
from lorica.serve.engine.shelf import Shelf
from lorica.serve.engine.stats import OfAdapter, Stats

__all__ = [
    "Described",
    "Ended",
    "Engine",
    "Event",
    "Generation",
    "Limits",
    "Listener",
    "Merged",
    "OfAdapter",
    "Request",
    "Shelf",
    "Stats",
    "Ticket",
    "Usage",
    "Wrote",
]
