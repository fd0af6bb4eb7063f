"""Which adapters a request means: `model` and `adapters` to what the engine chooses by.

model                       adapters                 chosen
BASE, or base               -                        the base
sql, BASE:sql, base:sql     -                        one adapter
BASE, or base               [{name, weight}, ...]    a blend of them
anything else                                        404
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lorica.adapter.mixes import Choice
from lorica.errors import RequestError, did_you_mean
from lorica.serve.engine import Described
from lorica.serve.http.errors import ApiError
from lorica.serve.http.metrics import BASE, BLEND
from lorica.serve.http.schemas import Part


class Listed(Protocol):
    """Where adapters are kept; `lorica.serve.engine.Shelf`."""

    def list(self) -> Sequence[Described]: ...


@dataclass(frozen=True)
class Chosen:
    """model: as answers name it.  label: for logs and metrics."""

    choice: Choice
    model: str
    label: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """folder: its name alone.  plain: it was taught prompts and completions, not chats.  templated: chats, through a
    template of its own, which is not run here."""

    folder: str
    plain: bool = False
    templated: bool = False


@dataclass(frozen=True, kw_only=True)
class Names:
    """Every model that can be asked for.

    base          the name of the base;  created: when it was loaded, in seconds since 1970
    merged        the one adapter that is folded into the base; the base then does not answer without it
    origins       of the adapters by name, as they were loaded
    classifiers   names that answer on /v1/classify alone
    """

    base: str
    created: int
    adapters: Listed | None
    merged: str | None = None
    origins: dict[str, Origin] = field(default_factory=dict)
    classifiers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.origins, *self.classifiers):
            self._require_no_base(name)

    def require_free(self, name: str) -> None:
        """RequestError for an adapter's name that already means the base, or a classifier."""
        self._require_no_base(name)
        if name in self.classifiers:
            raise RequestError(f"{name!r} names an adapter that classifies; choose another name")

    def _require_no_base(self, name: str) -> None:
        if name in (self.base, BASE, BLEND):
            raise RequestError(f"{name!r} names the base, or a blend; choose another name for the adapter")

    def listed(self) -> tuple[Described, ...]:
        """One a name: what answers, else what is coming or has failed.  Generations that end are nobody's choice."""
        found: dict[str, Described] = {}
        for each in () if self.adapters is None else self.adapters.list():
            if each.state != "draining" and (each.name not in found or each.state == "ready"):
                found[each.name] = each
        return tuple(found.values())

    def chosen(self, model: str, parts: Sequence[Part] | None) -> Chosen:
        """ApiError 400 or 404."""
        if parts:
            return self._blend(model, parts)
        name = self._without_base(model)
        if name is not None:
            self._require(name, model)
            return Chosen(name, name, name, (name,))
        if self.merged is not None:
            raise _unknown(model, [self.merged])
        return Chosen(None, self.base, BASE)

    def _blend(self, model: str, parts: Sequence[Part]) -> Chosen:
        if self.merged is not None:
            raise ApiError(400, "one adapter is merged into the base; nothing can be blended", param="adapters")
        if self._without_base(model) is not None:
            raise ApiError(400, f"adapters: with a blend, model names the base: {self.base}", param="model")
        weights: Mapping[str, float] = {part.name: part.weight for part in parts}
        if len(weights) < len(parts):
            raise ApiError(400, "adapters: each name once", param="adapters")
        for name in weights:
            self._require(name, name, param="adapters")
        return Chosen(weights, self.base, BLEND, tuple(weights))

    def _without_base(self, model: str) -> str | None:
        """The adapter's name; None where the base alone is meant."""
        for base in (self.base, BASE):
            if model == base:
                return None
            if model.startswith(f"{base}:"):
                return model.removeprefix(f"{base}:")
        return model

    def _require(self, name: str, asked: str, param: str = "model") -> None:
        served = [each.name for each in self.listed() if each.state in ("ready", "failed")]
        if name not in served:
            raise _unknown(asked, [self.base, *served], param)

    def plain(self, chosen: Chosen) -> bool:
        """Whether all that was chosen was taught prompts and completions."""
        origins = [self.origins.get(name) for name in chosen.names]
        return bool(origins) and all(origin is not None and origin.plain for origin in origins)

    def require_this_template(self, chosen: Chosen) -> None:
        """ApiError 400 for one that would be asked in words it was not taught."""
        for name in chosen.names:
            origin = self.origins.get(name)
            if origin is not None and origin.templated:
                said = f"{name} was taught chats through a template of its own, which a server does not run: write the "
                raise ApiError(400, said + "prompt as that template does, and ask /v1/completions", param="model")


def _unknown(model: str, known: Sequence[str], param: str = "model") -> ApiError:
    near = did_you_mean(model, known)
    return ApiError(404, f"The model `{model}` does not exist{near}", param=param, code="model_not_found")
