"""advise: a recipe for some data on a base and a device, and why; no weights are read."""

from collections.abc import Mapping
from typing import Any

from lorica.api.fitting import AS_IS, Search, nearest
from lorica.api.lessons import from_files
from lorica.api.planning import drawn
from lorica.api.tasked import TaskLike, settled
from lorica.budget.advice import Advice, Facts, decide, noted
from lorica.budget.fitting import Choice, best
from lorica.budget.memory import shapes_of
from lorica.budget.rules import DISAGREEMENTS, DOUBTS, RULES
from lorica.data import Dataset
from lorica.errors import ModelError, NoRoomError, RequestError
from lorica.models import context_limit, load_tokenizer
from lorica.models.chat import renderer
from lorica.recipe import Recipe, text
from lorica.tasks import require_task

MOST_HOURS = 1e5


def advise(
    data: str,
    model: str,
    *,
    task: TaskLike | None = None,
    memory: float | None = None,
    device: str | None = None,
    hours: float | None = None,
    output: str = "runs/advised",
) -> Advice:
    """Method, rank, rates and all else for the rows of `data` on the base `model`.

    task            what the rows are for; None: language modelling
    memory, device  bytes, or a card by name; this machine's by default
    hours           that training may take

    NoRoomError where nothing fits, DataError where no row can be used, ModelError for a base without a tokenizer.
    """
    if hours is not None and not 0 < hours < MOST_HOURS:
        raise RequestError(f"--hours: {hours:g} is no time to train in; give hours, as in 8")
    given = {"model.source": model, "data.train": data, "task": require_task(task or "causal_lm").to_entry()}
    facts = _facts(given, memory, device, hours)
    decisions = decide(facts, RULES)
    settings = {key: value for each in decisions for key, value in each.settings.items()}
    search = Search(Recipe(**_nested({**given, **settings})), memory, device)
    ways = list(search.level(AS_IS))
    fitting = best(ways)
    if not fitting:
        raise NoRoomError(nearest(ways, search.place))
    chosen = fitting[0]
    tree = _nested({**given, **settings, **chosen.settings, "output": output})
    recipe = Recipe(**tree)
    return Advice(
        facts=facts,
        decisions=(*decisions, *chosen.decisions()),
        disagreements=noted(facts, settings, DISAGREEMENTS),
        doubts=noted(facts, settings, DOUBTS),
        recipe=recipe.to_dict(),
        yaml=text.write(tree),
        device=str(search.place),
        peak=chosen.forecast.memory.peak,
        seconds=_seconds(recipe, facts, chosen),
    )


def _facts(given: Mapping[str, Any], memory: float | None, device: str | None, hours: float | None) -> Facts:
    """What the rows, the shapes of the base and the device say."""
    rows, instructed = _read(Recipe(**_nested({**given, "method.name": "lora"})))
    sized = {**given, "data.max_length": max(int(rows.lengths.max()), 2)}
    search = Search(Recipe(**_nested({**sized, "method.name": "lora", "method.r": 8})), memory, device)
    whole = Search(Recipe(**_nested({**sized, "method.name": "full"})), memory, device)
    ways = list(search.level(AS_IS))
    plan, shapes = search.itself.forecast.plan, shapes_of(search.itself.forecast.plan)
    config: Any = getattr(search.draft.shapes, "config", None)
    around = sum(each.parameters for each in plan.edits if each.edit.place == "around")
    return Facts(
        task=str(search.recipe.task.name),
        shape=rows.shape,
        rows=len(rows),
        dropped=len(rows.dropped),
        tokens=int(rows.lengths.sum()),
        learned=rows.label_tokens,
        longest=int(rows.lengths.max()),
        model=str(given["model.source"]),
        family=getattr(config, "model_type", ""),
        instructed=instructed,
        context=context_limit(search.draft.shapes) or int(rows.lengths.max()),
        parameters=plan.base_parameters,
        width=shapes.d,
        a_rank=around // 8,
        quantised=any(site.stored for site in plan.base),
        fits=_alone(ways),
        full_fits=_alone(whole.level(AS_IS)),
        seconds_a_token=None if search.tflops is None else search.itself.seconds,
        hours=hours,
    )


def _read(recipe: Recipe) -> tuple[Dataset, bool]:
    """The rows as the base reads them, and whether it has a chat template."""
    shapes: Any = drawn(recipe).shapes
    shapes.tokenizer = load_tokenizer(recipe.model.source)
    task = settled(recipe.task, recipe.data, recipe.model.source)
    if shapes.tokenizer is None and task.reads_text:
        raise ModelError(f"{recipe.model.source}: brings no tokenizer, which counts the tokens of the rows")
    rows, _ = from_files(shapes, recipe.data, task)
    return rows, shapes.tokenizer is not None and renderer(shapes.tokenizer) is not None


def _alone(ways: Any) -> bool:
    """Whether it fits with nothing kept elsewhere."""
    return any(each.forecast.fits is not False and not each.forecast.elsewhere.total for each in ways)


def _seconds(recipe: Recipe, facts: Facts, chosen: Choice) -> float | None:
    known = chosen.forecast.tflops is not None
    return (recipe.train.epochs or 0) * facts.tokens * chosen.seconds if known else None


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train.epochs": 3}` as `{"train": {"epochs": 3}}`."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        above, _, last = key.rpartition(".")
        (tree.setdefault(above, {}) if above else tree)[last] = value
    return tree
