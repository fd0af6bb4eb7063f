"""Adapters as a resource (/v1/adapters), and by vLLM's two routes."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from lorica.serve.engine import Described
from lorica.serve.http.reading import read
from lorica.serve.http.schemas import AdapterAsked, LoadAsked, ReplaceAsked, UnloadAsked
from lorica.serve.http.served import Served, served


async def adapters(request: Request) -> Response:
    here = served(request)
    return JSONResponse({"object": "list", "data": [shown(here, each) for each in here.names.listed()]})


async def adapter(request: Request) -> Response:
    return _shown(served(request), request.path_params["name"])


async def add(request: Request) -> Response:
    here = served(request)
    asked = await read(request, AdapterAsked, here.limits)
    await here.loads.load(asked.name, asked.folder, replace=False)
    return _shown(here, asked.name, 201)


async def replace(request: Request) -> Response:
    """Requests in flight end as they began; new ones get the new generation."""
    here, name = served(request), request.path_params["name"]
    asked = await read(request, ReplaceAsked, here.limits)
    await here.loads.load(name, asked.folder, replace=True)
    return _shown(here, name)


async def remove(request: Request) -> Response:
    here, name = served(request), request.path_params["name"]
    await here.loads.unload(name)
    return JSONResponse({"id": name, "object": "adapter", "deleted": True})


async def load_lora_adapter(request: Request) -> Response:
    here = served(request)
    asked = await read(request, LoadAsked, here.limits)
    held = any(each.name == asked.lora_name for each in here.names.listed())
    await here.loads.load(asked.lora_name, asked.lora_path, replace=asked.load_inplace and held)
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")


async def unload_lora_adapter(request: Request) -> Response:
    here = served(request)
    asked = await read(request, UnloadAsked, here.limits)
    await here.loads.unload(asked.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")


def _shown(here: Served, name: str, status: int = 200) -> JSONResponse:
    return JSONResponse(shown(here, here.loads.described(name)), status)


def shown(here: Served, each: Described) -> dict[str, Any]:
    """root: the name of its folder, never the path.  loaded_at: seconds since 1970."""
    origin = here.names.origins.get(each.name)
    return {
        "id": each.name,
        "object": "adapter",
        "parent": here.names.base,
        "root": None if origin is None else origin.folder,
        "generation": each.generation,
        "digest": each.digest,
        "state": each.state,
        "method": each.method,
        "rank": each.rank,
        "bytes": each.bytes,
        "tier": each.tier,
        "in_flight": each.in_flight,
        "loaded_at": each.loaded_at,
        "problem": each.problem,
    }
