"""fit to a device: the knobs of a recipe turned until it fits, those first that change no result."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

from lorica import budget
from lorica.api.planning import Draft, drawn
from lorica.budget import Choice, Device, Fit, Machine
from lorica.budget.fitting import best, seconds_a_token
from lorica.budget.knobs import KNOBS, Asked, Knob, Settings
from lorica.errors import LoricaError, NoRoomError
from lorica.models.causal_lm import CausalLM
from lorica.recipe import Recipe

Turned = tuple[Settings, tuple[Knob, ...], tuple[int, ...]]
"""Settings, the knobs they are of, and how far each knob was turned."""
AS_IS: Turned = ({}, (), ())
"""Nothing that costs quality is turned."""
EXACT = [knob for knob in KNOBS if knob.exact]
INEXACT = [knob for knob in KNOBS if not knob.exact]
LENGTH = "data.max_length"
DEVICES_NAMED = 3


def best_for(recipe: Recipe, *, memory: float | None = None, device: str | None = None) -> Fit:
    """The three best recipes for a device, this machine's by default.

    Rank and length are turned only where nothing else fits.  NoRoomError where nothing fits at all, with what comes
    nearest.
    """
    search = Search(recipe, memory, device)
    found: list[Choice] = []
    for turned in _turned(INEXACT, search.asked):
        if any(knob.last for knob in turned[1]) and best(found):
            break
        found += search.level(turned)
    choices = best(found)
    if not choices:
        raise NoRoomError(nearest(found, search.place))
    return Fit(asked=search.itself, choices=choices)


@contextmanager
def advised(recipe: Recipe) -> Iterator[None]:
    """What has no room is told with the best recipe that has, for the memory that is free at the start."""
    before = budget.machine(recipe.model.device).available
    try:
        yield
    except NoRoomError as error:
        raise NoRoomError(f"{error}; {_remedy(recipe, before)}") from None


def _remedy(recipe: Recipe, memory: int) -> str:
    try:
        words = best_for(recipe, memory=memory or None).choices[0].words
    except LoricaError as error:
        return str(error)
    fits = f"by the forecast it fits with {words}" if words else "by the forecast it fits as it is"
    return f"{fits} (lorica plan --fit shows more; train.measure: false tries it nevertheless)"


class Search:
    """One recipe and one device."""

    def __init__(self, recipe: Recipe, memory: float | None, device: str | None) -> None:
        self.recipe, self.corrected = recipe, device is None
        self.tflops: float | None = None
        self._drafts: dict[Any, Draft | None] = {}
        self.draft = drawn(recipe)
        self.place = self.draft.place(memory, device)
        self.asked = asked_of(recipe, self.draft)
        self.itself = self._choice(self.draft, AS_IS)
        """The recipe as it is."""

    def level(self, turned: Turned) -> Iterator[Choice]:
        """Ways to turn the exact knobs at one level of quality; none where the recipe refuses that level.

        Things are kept elsewhere only where nothing fits without, and where nothing fits at all there is one way: all
        knobs turned as far as they go.
        """
        draft = self._drawn(turned)
        if draft is None:
            return
        ways = list(_turned(EXACT, replace(self.asked, length=draft.length)))
        leanest = self._way(draft, turned, ways[-1])
        if leanest is not None and leanest.forecast.fits is False:
            yield leanest
            return
        alone = [way for way in ways if not any(knob.elsewhere for knob in way[1])]
        found = self._ways(draft, turned, alone)
        if not any(choice.forecast.fits is not False for choice in found):
            found = self._ways(draft, turned, ways[len(alone) :])
        yield from found

    def _drawn(self, turned: Turned) -> Draft | None:
        """The plan of a level, which is one for all lengths."""
        settings = {key: value for key, value in turned[0].items() if key != LENGTH}
        key = tuple(settings.items())
        if key not in self._drafts:
            try:
                self._drafts[key] = drawn(self.recipe.changed(settings)) if settings else self.draft
            except LoricaError:
                self._drafts[key] = None
        draft = self._drafts[key]
        return None if draft is None else replace(draft, length=turned[0].get(LENGTH, self.asked.length))

    def _ways(self, draft: Draft, turned: Turned, ways: Sequence[Turned]) -> list[Choice]:
        return [choice for way in ways if (choice := self._way(draft, turned, way)) is not None]

    def _way(self, draft: Draft, turned: Turned, exact: Turned) -> Choice | None:
        settings = {**turned[0], **exact[0]}
        try:
            changed = self.recipe.changed(settings)
        except LoricaError:
            return None
        each = replace(draft, config=changed.train, host_layers=changed.model.host_layers)
        return self._choice(each, (settings, (*exact[1], *turned[1]), turned[2]))

    def _choice(self, draft: Draft, turned: Turned) -> Choice:
        forecast = draft.forecast(self.place, corrected=self.corrected)
        self.tflops = self.tflops or forecast.tflops
        quantised = any(site.stored for site in draft.planned.base)
        settings, knobs, lost = turned
        return Choice(
            settings=settings,
            knobs=knobs,
            forecast=forecast,
            lost=tuple(reversed(lost)),
            seconds=seconds_a_token(forecast, self.asked.step_tokens, self.tflops, quantised),
        )


def asked_of(recipe: Recipe, draft: Draft) -> Asked:
    train, numbered = recipe.train, len(recipe.method) > 1
    ranks = [(n, method) for n, method in enumerate(recipe.method) if isinstance(getattr(method, "r", None), int)]
    number, ranked = ranks[0] if ranks else (0, None)
    return Asked(
        tokens=train.micro_batch_tokens,
        length=draft.length,
        step_tokens=(train.rows_per_step or 0) * draft.length or train.tokens_per_step or draft.length,
        recomputing=train.gradient_checkpointing,
        r=getattr(ranked, "r", None),
        ranked=f"method.{number}.r" if numbered else "method.r",
        quantised=any(site.stored for site in draft.planned.base),
        own=isinstance(draft.shapes, CausalLM),
    )


def _turned(knobs: Sequence[Knob], asked: Asked) -> Iterator[Turned]:
    """Every combination, by how far the dearest knob is turned, then the one before it, and so on."""
    values = [[None, *knob.values(asked)] for knob in reversed(knobs)]
    for places in product(*(range(len(each)) for each in values)):
        lost = tuple(reversed(places))
        chosen = [values[-1 - n][place] for n, place in enumerate(lost)]
        settings: dict[str, Any] = {key: value for each in chosen if each for key, value in each.items()}
        yield settings, tuple(knob for knob, place in zip(knobs, lost, strict=True) if place), lost


def nearest(found: Sequence[Choice], place: Machine) -> str:
    if not found:
        return f"nothing fits {place}: the recipe can be turned in no way"
    least = min(found, key=lambda each: each.forecast.memory.peak)
    peak = least.forecast.memory.peak
    roomy = sorted((each for each in budget.DEVICES if each.available * budget.ROOM >= peak), key=_available)
    named = ", ".join(each.name for each in roomy[:DEVICES_NAMED])
    larger = f", or a device with room for it ({named})" if roomy else ""
    missing = budget.gigabytes(int(peak - budget.ROOM * place.available))
    return (
        f"nothing fits {place}: nearest is {least.words} with {budget.gigabytes(peak)}, {missing} too much; "
        f"take a smaller base{larger}"
    )


def _available(device: Device) -> int:
    return device.available
