"""bitsandbytes, imported where a quantised weight is met and nowhere else."""

import logging
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from lorica.errors import ModelError

REMEDY = "quantised weights need bitsandbytes: pip install 'lorica[quant]'"


@cache
def library() -> Any:
    """`bitsandbytes.functional`, with its operators registered.  ModelError where it is not installed.

    On CPUs with bfloat16 its import fetches a kernel of the hub and runs it, where the package `kernels` is installed;
    that package is hidden from it meanwhile.
    """
    logger, hidden = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        return import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ModelError(f"{REMEDY} ({error})") from error
    finally:
        logger.setLevel(level)
        _restore(hidden)


def _restore(hidden: ModuleType | None) -> None:
    if hidden is None:
        del sys.modules["kernels"]
    else:
        sys.modules["kernels"] = hidden
