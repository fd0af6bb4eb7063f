"""Served: what every route may use, put together once."""

from dataclasses import dataclass

from starlette.requests import Request

from lorica.serve.engine import Engine
from lorica.serve.http.choosing import Names
from lorica.serve.http.errors import ApiError
from lorica.serve.http.limits import HttpLimits
from lorica.serve.http.loading import Loads
from lorica.serve.http.metrics import Metrics
from lorica.serve.http.outside import Outside
from lorica.serve.http.page import Page
from lorica.serve.http.texts import Texts


@dataclass(frozen=True, kw_only=True)
class Served:
    """engine and texts are None for a base that writes no text."""

    names: Names
    metrics: Metrics
    limits: HttpLimits
    loads: Loads
    page: Page
    outside: Outside
    engine: Engine | None = None
    texts: Texts | None = None

    def writes(self) -> tuple[Engine, Texts]:
        """ApiError 400 where nothing here writes."""
        if self.engine is None or self.texts is None:
            raise ApiError(400, f"{self.names.base} writes no text; it makes embeddings (/v1/embeddings)")
        return self.engine, self.texts

    def start(self) -> None:
        if self.engine is not None:
            self.engine.start()

    def close(self) -> None:
        for each in (self.engine, self.texts, self.outside, self.loads):
            if each is not None:
                each.close()


def served(request: Request) -> Served:
    return request.app.state.served
