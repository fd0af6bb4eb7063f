"""What is known of a request when it has been answered; it goes to the log and to the metrics."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from lorica.serve.http.logs import Log, places_of
from lorica.serve.http.metrics import Metrics

POLLED = ("/healthz", "/metrics", "/v1/stats", "/v1/adapters")
"""Routes that are asked every second; they are counted, and logged where they fail."""


@dataclass(eq=False)
class Record:
    """route      the path of the route, with names of its parameters: never what the client wrote
    adapter    what was chosen, by a name that is served
    status     499 where the client left
    problem    what the engine said when it failed
    """

    method: str
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")
    started: float = field(default_factory=time.monotonic)
    route: str = "-"
    tenant: str = ""
    status: int = 499
    adapter: str = "-"
    prompt_tokens: int = 0
    written_tokens: int = 0
    reused_tokens: int = 0
    first_token: float | None = None
    error: str | None = None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the log.  The tenant is told by a few characters, its key by none."""
        said = {
            "id": self.id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "seconds": round(time.monotonic() - self.started, 4),
            "tenant": self.tenant[:8],
            "adapter": self.adapter,
            "prompt_tokens": self.prompt_tokens,
            "written_tokens": self.written_tokens,
            "first_token_seconds": None if self.first_token is None else round(self.first_token, 4),
            "error": self.error,
            "problem": self.problem[:300],
        }
        return {name: value for name, value in said.items() if value not in (None, "", 0, "-")}


@dataclass(frozen=True)
class Records:
    log: Log
    metrics: Metrics

    def finished(self, record: Record) -> None:
        self.metrics.answered(record.route, record.status, record.adapter)
        if record.status >= 400 or record.route not in POLLED:
            self.log.write("request", **record.to_dict())

    def failed(self, record: Record, error: Exception) -> None:
        self.log.write("error", id=record.id, type=type(error).__name__, at=places_of(error))
