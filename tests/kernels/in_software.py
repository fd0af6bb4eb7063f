"""A plugin of pytest: kernels as a processor with pairs of bfloat16, or with tiles, gets them, on one with AVX-512
alone; instructions that it lacks are functions.

LORICA_IN_SOFTWARE=pairs or tiles
"""

import os
from dataclasses import replace
from pathlib import Path

from lorica.kernels.native import build

HEADER = Path(__file__).parent / "in_software.h"
MACROS = {"pairs": (), "tiles": ("-DTILES_TOO",)}
found = build.sources


def sources(files: list[Path]) -> build.Sources:
    wanted = found(files)
    more = ("-UWIDENED", "-include", str(HEADER), *MACROS[os.environ["LORICA_IN_SOFTWARE"]])
    return replace(wanted, flags=(*wanted.flags, *more), known=(*wanted.known, HEADER.read_text()))


build.sources = sources
