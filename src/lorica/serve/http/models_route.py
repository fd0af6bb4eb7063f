"""/v1/models: the base, and the adapters with the base as their parent."""

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lorica.serve.http.errors import ApiError
from lorica.serve.http.served import Served, served

OWNER = "lorica"


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": list(_cards(served(request)))})


async def model(request: Request) -> Response:
    asked = request.path_params["id"]
    for card in _cards(served(request)):
        if asked in (card["id"], f"{card['parent']}:{card['id']}"):
            return JSONResponse(card)
    raise ApiError(404, f"The model `{asked[:256]}` does not exist", param="model", code="model_not_found")


def _cards(here: Served) -> Iterator[dict[str, Any]]:
    names = here.names
    if names.merged is None:
        yield _card(here, names.base, names.created, parent=None)
    for each in names.listed():
        if each.state == "ready":
            yield _card(here, each.name, int(each.loaded_at), parent=names.base)
    for name in names.classifiers:
        yield _card(here, name, names.created, parent=names.base)


def _card(here: Served, name: str, created: int, parent: str | None) -> dict[str, Any]:
    origin = here.names.origins.get(name)
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "root": name if origin is None else origin.folder,
        "parent": parent,
        "max_model_len": None if here.texts is None else here.texts.limit,
    }
