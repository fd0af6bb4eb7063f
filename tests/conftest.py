"""Signals as a person's terminal has them: what a shell starts in the background begins with Ctrl-C ignored."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
