"""The shell of the page: files that lie in the package, read once, served by exact name.  They hold no secrets."""

from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from lorica.serve.http.errors import ApiError

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"


@dataclass(frozen=True)
class Page:
    """Content by file name."""

    files: dict[str, bytes]

    @classmethod
    def of_package(cls) -> "Page":
        folder = resources.files("lorica.serve.http") / "static"
        return cls({each.name: each.read_bytes() for each in folder.iterdir() if _kind(each.name)})

    def response(self, name: str) -> Response:
        """ApiError 404."""
        if name not in self.files:
            raise ApiError(404, "there is no such file of the page")
        return Response(self.files[name], media_type=_kind(name), headers={"cache-control": "no-cache"})


def _kind(name: str) -> str | None:
    return TYPES.get(f".{name.rpartition('.')[2]}")


async def shell(request: Request) -> Response:
    return request.app.state.served.page.response(INDEX)


async def static(request: Request) -> Response:
    return request.app.state.served.page.response(request.path_params["file"])
