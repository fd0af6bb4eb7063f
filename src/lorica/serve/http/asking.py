"""Asking the engine: a request of a client to documents that are being written."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from lorica.models.sampling import seed_of
from lorica.serve.engine import Request
from lorica.serve.http.choosing import Chosen
from lorica.serve.http.errors import ApiError, GoneError
from lorica.serve.http.gate import record_of
from lorica.serve.http.schemas import ChatAsked, CompletionAsked
from lorica.serve.http.served import Served, served
from lorica.serve.http.stream import Inbox, PatientInbox
from lorica.serve.http.writing import Writing

T = TypeVar("T")
WriteAsked = ChatAsked | CompletionAsked


def chosen_for(http: HttpRequest, asked: WriteAsked) -> Chosen:
    """ApiError 400 or 404; what is chosen is noted."""
    chosen = served(http).names.chosen(asked.model, asked.adapters)
    record_of(http.scope).adapter = chosen.label
    return chosen


def begun(http: HttpRequest, asked: WriteAsked, chosen: Chosen, prompts: Sequence[tuple[int, ...]]) -> Writing:
    """Every choice of every prompt.  Errors of the engine, and ApiError 400 for more than may be asked at once."""
    here, record = served(http), record_of(http.scope)
    engine, texts = here.writes()
    _require_within(here.limits.documents, here.limits.max_tokens, asked, len(prompts))
    early, continues = asked.stream or bool(asked.stop), isinstance(asked, CompletionAsked)
    return Writing.begun(
        engine,
        list(_requests(here, asked, chosen, record.tenant, texts.stop_ids, prompts, engine.longest)),
        partial(texts.unfolding, asked.stop, continues=continues)
        if early
        else partial(texts.folded, continues=continues),
        Inbox() if early else PatientInbox(),
        record=record,
        metrics=here.metrics,
        choices=asked.n,
        seconds=here.limits.seconds,
    )


def _requests(
    here: Served,
    asked: WriteAsked,
    chosen: Chosen,
    tenant: str,
    stop_ids: frozenset[int],
    prompts: Sequence[tuple[int, ...]],
    longest: Callable[[int], int],
) -> Iterator[Request]:
    """The first draws from the seed that was given, as one that is alone does; the others from seeds made of it.  A
    length that nobody asked for is what there is room for."""
    seed = secrets.randbits(63) if asked.seed is None else asked.seed
    for number, prompt in enumerate(prompt for prompt in prompts for _ in range(asked.n)):
        yield Request(
            tokens=prompt,
            max_tokens=asked.length or max(1, min(here.limits.max_tokens, longest(len(prompt)))),
            choice=chosen.choice,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=max(asked.top_k, 0),
            seed=seed if number == 0 else seed_of(seed, number),
            stop_ids=stop_ids,
            logprobs=asked.likeliest,
            tenant=tenant,
            deadline=here.limits.seconds,
        )


def _require_within(documents: int, tokens: int, asked: WriteAsked, prompts: int) -> None:
    if prompts * asked.n > documents:
        raise ApiError(400, f"n: {prompts} prompts with n = {asked.n} are more than {documents} answers", param="n")
    if (asked.length or 0) > tokens:
        said = f"max_tokens: {asked.length} is more than the {tokens} that this server writes (--max-tokens)"
        raise ApiError(400, said, param="max_tokens")


async def while_there(http: HttpRequest, work: Awaitable[T]) -> T:
    """The result, unless the client leaves before: GoneError, and the work is cancelled."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise GoneError
        return doing.result()
    finally:
        doing.cancel()
        gone.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        continue
