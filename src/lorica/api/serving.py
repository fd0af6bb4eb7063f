"""serve: a base and its adapters, verified, behind the HTTP server.

base that writes      -> Bank -> Shelf -> Engine        adapters with a head of their own answer on /v1/classify
base that encodes     -> Bank -> Encoder
merged                -> one adapter in the weights -> Engine
"""

import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from lorica import adapter as adapters_room
from lorica.adapter import AdapterFile, Bank, Verification, read
from lorica.adapter.fetch import folder_of
from lorica.api.lessons import reader_of
from lorica.api.recorded import loaded
from lorica.api.tasked import recorded_head, task_for
from lorica.api.verifying import verify
from lorica.errors import AdapterError, RequestError, did_you_mean
from lorica.models import load_base
from lorica.serve.classifier import Classifier
from lorica.serve.encoder import Encoder, Resident
from lorica.serve.engine import Engine, Limits, Merged, Shelf
from lorica.serve.http.app import app
from lorica.serve.http.choosing import Names
from lorica.serve.http.limits import HttpLimits
from lorica.serve.http.listening import address_of, bound, is_loopback
from lorica.serve.http.listening import serve as listen
from lorica.serve.http.loading import NAME, Loads, Root, adapter_in, named, origin_of
from lorica.serve.http.logs import Log
from lorica.serve.http.metrics import Metrics
from lorica.serve.http.outside import Outside
from lorica.serve.http.page import Page
from lorica.serve.http.security import LOOPBACK, Security
from lorica.serve.http.served import Served
from lorica.serve.http.texts import Texts
from lorica.tasks.sequence import SequenceTask

ANY = ("0.0.0.0", "::")
"""Hosts that are every address of this machine, and the name of none."""


@dataclass(frozen=True)
class Listening:
    """Where a server answers.  key: the one that was made up for it, None where one was given."""

    url: str
    base: str
    adapters: tuple[str, ...]
    key: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"url": self.url, "base": self.base, "adapters": list(self.adapters), "key": self.key}

    def __str__(self) -> str:
        served = ", ".join(self.adapters) or "none"
        made = f"\nkey: {self.key}   (made up for this run; it is shown here alone)" if self.key else ""
        return f"{self.url}   base {self.base}, adapters {served}{made}"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be served: a base by its source, adapters by name, and the one of them that is folded in."""

    source: str
    folders: Mapping[str, Path]
    root: Root | None = None
    merge: str | None = None
    dtype: str | None = None
    limits: HttpLimits = field(default_factory=HttpLimits)
    engine_limits: Limits | None = None


def serve(
    model: str,
    adapters: Mapping[str, str | Path] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_keys: Sequence[str] = (),
    admin_key: str | None = None,
    adapters_root: str | Path | None = None,
    dtype: str | None = None,
    merge: str | None = None,
    allow_hosts: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
    ready: Callable[[Listening], None] = lambda listening: None,
    log: TextIO = sys.stderr,
    limits: HttpLimits = HttpLimits(),  # noqa: B008 (frozen)
    engine_limits: Limits | None = None,
) -> None:
    """Answers on `host` and `port` until it is stopped; `ready` is called when it does.

    adapters        folders (a run's folder is taken for the adapter in it) or hub ids, by the names they are asked by
    api_keys        none: one is made up, which only an address of this machine may be served with
    admin_key       opens loading and unloading by request; None: nothing does
    adapters_root   where requests find adapters, by the name of their folder
    merge           the one adapter that is folded into the weights; the base is then not served without it

    RequestError for what cannot be served, AdapterError for an adapter that does not check out.
    """
    made_up = None if api_keys else _made_up_for(host)
    security = _security(tuple(api_keys) or (made_up or "",), admin_key, host, allow_hosts, allow_origins)
    order = Order(
        source=model,
        dtype=dtype,
        folders=_folders(adapters or {}),
        root=None if adapters_root is None else _root(Path(adapters_root)),
        merge=merge,
        limits=limits,
        engine_limits=engine_limits,
    )
    with bound(host, port) as listening:
        written = Log(log)
        here = served(load_base(model, dtype=dtype), order, written)
        names = tuple(sorted({*here.names.origins, *here.names.classifiers}))
        told = Listening(address_of(listening), here.names.base, names, made_up)
        listen(app(here, security, written), listening, limits, written, lambda: ready(told))


def _made_up_for(host: str) -> str:
    if not is_loopback(host):
        raise RequestError(
            f"serve: {host} can be reached from other machines; choose a key with --api-key or LORICA_API_KEY"
        )
    return secrets.token_urlsafe(24)


def _security(
    keys: tuple[str, ...], admin: str | None, host: str, hosts: Sequence[str], origins: Sequence[str]
) -> Security:
    own = [] if host in ANY else [host.lower()]
    named = tuple(name.lower() for name in (*LOOPBACK, *own, *hosts))
    return Security(keys=keys, admin=admin, hosts=named, origins=tuple(each.lower().rstrip("/") for each in origins))


def _folders(adapters: Mapping[str, str | Path]) -> dict[str, Path]:
    wrong = [name for name in adapters if not NAME.fullmatch(name)]
    if wrong:
        raise RequestError.of(
            [f"--adapter {name}: a name is letters, digits, dots, dashes and underscores, at most 64" for name in wrong]
        )
    return {name: adapter_in(folder_of(source)) for name, source in adapters.items()}


def _root(path: Path) -> Root:
    if not path.is_dir():
        raise RequestError(f"{path}: no such folder; --adapters-root is the folder that adapter folders lie in")
    return Root(path)


def served(model: nn.Module, order: Order, log: Log) -> Served:
    """Everything behind the routes, with every adapter verified."""
    headed = {name: folder for name, folder in order.folders.items() if _has_head(folder)}
    others = {name: folder for name, folder in order.folders.items() if name not in headed}
    classifiers = {name: _classifier(folder, order) for name, folder in headed.items()}
    kept, encoder, engine = answering(model, others, order)
    names = Names(
        base=name_of(order.source),
        created=int(time.time()),
        adapters=kept,
        merged=order.merge,
        origins={name: origin_of(folder) for name, folder in others.items()},
        classifiers=tuple(classifiers),
    )
    metrics = Metrics(None if engine is None else engine.stats)
    return Served(
        names=names,
        metrics=metrics,
        limits=order.limits,
        loads=Loads(names, metrics, log, kept if isinstance(kept, Shelf) else None, order.root),
        page=Page.of_package(),
        outside=Outside(encoder, classifiers),
        engine=engine,
        texts=None if engine is None else Texts.of(model),
    )


def answering(
    model: nn.Module, folders: Mapping[str, Path], order: Order
) -> tuple[Shelf | Merged | Resident, Encoder | None, Engine | None]:
    """Where the adapters are kept, and what asks them."""
    if getattr(model, "main_input_name", None) == "pixel_values":
        raise RequestError(f"{order.source}: answers about images, which are not served; ask it with lorica generate")
    if order.merge is not None:
        merged = _merged(model, folders, order.merge)
        return merged, None, Engine(model, merged, order.engine_limits)
    bank = Bank(model)
    if not writes(model):
        return Resident.on(bank, folders), Encoder(bank), None
    shelf = Shelf(bank, root=None if order.root is None else order.root.path)
    for name, folder in folders.items():
        shelf.load_own(name, folder)
    return shelf, None, Engine(model, shelf, order.engine_limits)


def _merged(model: nn.Module, folders: Mapping[str, Path], name: str) -> Merged:
    if name not in folders:
        raise RequestError(f"--merge {name}: no such --adapter{did_you_mean(name, folders)}")
    if len(folders) > 1:
        raise RequestError(f"--merge {name}: one adapter is merged, and no other can be served beside it")
    read_once: list[AdapterFile] = []
    found = adapters_room.verify(folders[name], lambda file: read_once.append(file) or model)
    _require_ok(name, found)
    (file,) = read_once
    adapters_room.load(model, file, trainable=False).merge()
    return Merged(name, digest=file.digest or "", method=" + ".join(method.kind for method in file.methods))


def _require_ok(name: str, found: Verification) -> None:
    if found.status == "failed":
        raise AdapterError.of([f"{name}: {check.name}: {check.detail}" for check in found.checks if not check.ok])


def writes(model: Any) -> bool:
    """Whether a base writes text on, rather than encode it."""
    can = getattr(model, "can_generate", None)
    return bool(can()) if callable(can) else hasattr(model, "generate")


def name_of(source: str) -> str:
    """How the base is asked for: a hub id as it is, a folder by its last name, never by its path."""
    if source.startswith("package:"):
        return source.removeprefix("package:")
    return Path(source).expanduser().resolve().name if Path(source).expanduser().exists() else source


def _has_head(folder: Path) -> bool:
    return recorded_head(read(folder).manifest) is not None


def _classifier(folder: Path, order: Order) -> Classifier:
    _require_ok(named(folder), verify(folder, model=order.source, dtype=order.dtype))
    model, manifest = loaded(folder, order.source, dtype=order.dtype)
    task = task_for(model, None, manifest)
    if not isinstance(task, SequenceTask):
        raise RequestError(f"{folder}: trained for {task.name}, which is not served; it answers with lorica generate")
    return Classifier(model, reader_of(model, task), task)
