"""How much an engine takes on."""

from dataclasses import dataclass, fields

from lorica.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """running        documents that are read and written at the same time
    queue          requests that may wait for that
    prompt_chunk   tokens of prompts that are read in a step while answers are being written
    prompt_alone   the same where none is
    cache_bytes    for keys and values; None: a quarter of the memory that is free, and no more than `running` whole
                   contexts and as much again for reuse
    context        tokens of a prompt and its answer; None: what the base allows
    quantum        tokens that each adapter's queue is granted in a round

    RequestError for a limit below 1.
    """

    running: int = 16
    queue: int = 256
    prompt_chunk: int = 64
    prompt_alone: int = 256
    cache_bytes: int | None = None
    context: int | None = None
    quantum: int = 256

    def __post_init__(self) -> None:
        low = [name for name in (f.name for f in fields(self)) if (getattr(self, name) or 0) < 1]
        wrong = [name for name in low if getattr(self, name) is not None]
        if wrong:
            raise RequestError.of([f"limits: {name} is {getattr(self, name)}; it is 1 or more" for name in wrong])
