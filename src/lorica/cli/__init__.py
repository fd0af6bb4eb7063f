"""The command line: words in, values out.  Importing it imports no torch, so that help is at once."""

from lorica.cli.entry import main

__all__ = ["main"]
