"""Signals as a person's terminal has them: what a shell starts in the background begins with Ctrl-C ignored.

Kernels in Triton run in its interpreter where there is no GPU; it has to be chosen before triton is first imported.
What was measured on this machine corrects no plan of a test.
"""

import os
import signal
import tempfile
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

os.environ["LORICA_CACHE"] = tempfile.mkdtemp(prefix="lorica-tests-")
