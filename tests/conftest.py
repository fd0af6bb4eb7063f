"""Signals as a person's terminal has them: what a shell starts in the background begins with Ctrl-C ignored.

Kernels in Triton run in its interpreter where there is no GPU; it has to be chosen before triton is first imported.
What was measured on this machine corrects no plan of a test.
"""

import gc
import os
import signal
import tempfile
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

CACHE = tempfile.TemporaryDirectory(prefix="lorica-tests-")
os.environ["LORICA_CACHE"] = CACHE.name

gc.disable()


def pytest_collection_finish() -> None:
    """Two of the eleven seconds in which a worker imports what it tests went into collections that found nothing."""
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _collections_are_of_one_module() -> None:
    """A collection over all that a worker has imported takes 0.6 s; what stands when a module begins is left out."""
    gc.collect()
    gc.freeze()
