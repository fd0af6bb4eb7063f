"""train and fit: a recipe, or rows in memory, become an adapter that works."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from lorica import durable, study
from lorica.adapter import Attached, inspect
from lorica.adapter import plan as plan_of
from lorica.api.collecting import for_run
from lorica.api.fitting import advised
from lorica.api.lessons import Rows, from_anything, from_files
from lorica.api.planning import drawn, plan, require_room, training_of
from lorica.api.tasked import TaskLike, attach, load_base, settled, task_for, taught, with_head
from lorica.api.vocabulary import with_tokens
from lorica.budget import Measured, cautions
from lorica.budget.memory import CONTEXT
from lorica.data import DataConfig, Dataset
from lorica.errors import RecipeError, by_field, did_you_mean
from lorica.methods import Method
from lorica.models import fingerprint, quantisation_of
from lorica.recipe import Recipe
from lorica.tasks import Task
from lorica.train import Run, TrainConfig, memory, run_folder
from lorica.train import fit as learn
from lorica.train.loop import trying
from lorica.train.rehearsal import measure
from lorica.train.reporter import Quiet, Reporter
from lorica.train.room import Room, compared, evaluated


def train(recipe: Recipe, resume: bool = False, reporter: Reporter | None = None, *, finish: bool = False) -> Run:
    """Trains what a recipe says into `recipe.output`: adapter, checkpoints, metrics, the recipe and a report.

    resume: goes on from the newest checkpoint that verifies.  finish: takes no step, and makes the adapter that this
    checkpoint holds, the best evaluated so far, else the last; the status of a run with steps left is then "cut short",
    and it may still be resumed.  Ctrl-C and SIGTERM save and give a Run whose status is "interrupted".  Raises
    `RequestError` where the recipe does not fit the base or the data, `RunError` when the work fails.
    """
    reporter = reporter or Quiet()
    folder = Path(recipe.output)
    if finish:
        run_folder.require_saved(folder)
    elif not resume:
        run_folder.refuse_occupied(folder)
    with advised(recipe):
        return _train(recipe, resume or finish, finish, reporter)


def _train(recipe: Recipe, resume: bool, finish: bool, reporter: Reporter) -> Run:
    folder = Path(recipe.output)
    if recipe.train.measure and not finish:
        require_room(recipe)
    recipe, model, methods = _loaded(recipe, reporter)
    began = run_folder.began(folder, resume=resume)
    learned, held = from_files(model, recipe.data, recipe.task, began=began)
    room = Room.of(recipe.train, learned, held, folder=folder, resume=resume, reporter=reporter)
    if not finish:
        learned, held = _compared(recipe.task, model, learned, held, room)
    attached = _adapted(recipe, model, methods, learned, resume)
    _tell(reporter, "train", learned)
    run = learn(
        attached,
        recipe.task,
        learned,
        held,
        recipe.train,
        folder=folder,
        reporter=reporter,
        resume=resume,
        finish=finish,
        identity=_identity(recipe, model),
        facts={"recipe": recipe.to_dict(), "task": recipe.task.to_entry(), "data": learned.to_dict()},
        before=None if held is None else partial(_before, recipe.task, model, held, room),
        room=room,
        recipe=recipe.to_yaml(),
        began=began,
    )
    if run.adapter is not None:
        _report(recipe, run)
    return run


def measured(recipe: Recipe) -> Measured:
    """What the heaviest batch of a recipe takes, in a process that has done nothing else."""
    drawn(recipe)  # imports what loading does
    place = torch.device(recipe.model.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    context = CONTEXT[place.type] if place.type == "cuda" else memory.held_bytes(place)
    recipe, model, methods = _loaded(recipe, Quiet())
    memory.give_back(place)
    weights = memory.held_bytes(place) - (0 if place.type == "cuda" else context)
    learned, held = from_files(model, recipe.data, recipe.task)
    room = Room.of(recipe.train, learned, held, reporter=Quiet())
    learned, held = _compared(recipe.task, model, learned, held, room)
    attached = _adapted(recipe, model, methods, learned, resume=False)
    with trying(attached, recipe.task, learned, held, recipe.train, room) as trainer:
        return measure(trainer, weights, context)


def _loaded(recipe: Recipe, reporter: Reporter) -> tuple[Recipe, nn.Module, tuple[Method, ...]]:
    """The recipe with its task settled, its base with the tokens that rows are read with, and what adapts it."""
    base = recipe.model
    task = settled(recipe.task, recipe.data, base.source, reporter.on_note)
    recipe = recipe.model_copy(update={"task": task})
    model = load_base(
        base.source,
        dtype=base.dtype,
        quantize=base.quantize,
        double_quant=base.double_quant,
        device=base.device,
        host_layers=plan(recipe).work.host_layers if base.host_layers == "auto" else base.host_layers,
        task=recipe.task,
        seed=recipe.train.seed,
    )
    methods = with_head(model, with_tokens(model, base.add_tokens, recipe.method))
    plan_of(model, methods)
    return recipe, model, methods


def _compared(
    task: Task, model: nn.Module, learned: Dataset, held: Dataset | None, room: Room
) -> tuple[Dataset, Dataset | None]:
    """What is learned and what it is scored on, with what the bare base says of them."""
    return compared(task, model, learned, room), None if held is None else compared(task, model, held, room)


def _adapted(recipe: Recipe, model: nn.Module, methods: tuple[Method, ...], learned: Dataset, resume: bool) -> Attached:
    start = for_run(model, methods, learned, recipe.task, Path(recipe.output), resume)
    return attach(model, methods, seed=recipe.train.seed, statistics=start)


def fit(
    attached: Attached,
    train: Rows | Dataset | str,
    eval: Rows | Dataset | str | None = None,  # noqa: A002  the word of recipes
    *,
    task: TaskLike | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    finish: bool = False,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Run:
    """Trains an adapter in place on rows in memory, data sets, or sources by name.

    settings: the entries of a recipe's `train` (`epochs=3`, `learning_rate=2e-4`) and, for how rows are encoded, of
    its `data` (`max_length`, `shape`, `template`, `loss_on`, `over_length`).  output: a run folder, none by default;
    resume and finish: as `train` has them.
    task: None is the one that the base was loaded for, or the adapter fitted for before; causal language modelling
    where neither was said.  `evaluate` and `generate` then know it, also of a run that was interrupted.
    """
    config, encoding = _settings(settings)
    chosen = task_for(attached.model, task)
    folder = None if output is None else Path(output)
    began = run_folder.began(folder, resume=resume or finish)
    learned = from_anything(attached.model, train, encoding, chosen, began=began)
    held = None if eval is None else from_anything(attached.model, eval, encoding, chosen, began=began)
    taught(attached, chosen)
    reporter = reporter or Quiet()
    longest = int(max(learned.lengths, default=1))
    for caution in cautions(attached.plan, training_of(config, longest, len(learned), chosen)):
        reporter.on_note(str(caution))
    return learn(
        attached,
        chosen,
        learned,
        held,
        config,
        folder=folder,
        reporter=reporter,
        resume=resume,
        finish=finish,
        identity={"base": fingerprint(attached.model), **_stored(attached.model), "method": _methods(attached)},
        facts={"task": chosen.to_entry(), "data": learned.to_dict()},
        began=began,
    )


ENCODING = tuple(name for name in DataConfig.model_fields if name not in {"train", "eval"})


def _settings(settings: dict[str, Any]) -> tuple[TrainConfig, DataConfig]:
    known = {*TrainConfig.model_fields, *ENCODING}
    unknown = [f"{name}: unknown setting{did_you_mean(name, known)}" for name in settings if name not in known]
    if unknown:
        raise RecipeError.of(unknown)
    encoding = {name: value for name, value in settings.items() if name in ENCODING}
    rest = {name: value for name, value in settings.items() if name not in ENCODING}
    try:
        return TrainConfig(**rest), DataConfig(train="rows", **encoding)
    except ValidationError as error:
        raise RecipeError.of(by_field(error)) from error


def _methods(attached: Attached) -> list[dict[str, Any]]:
    return [{"name": each.kind, **each.model_dump(mode="json")} for each in attached.plan.methods]


def _identity(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """What makes a resume wrong when it changes, beside the settings of training and the data."""
    tree = recipe.to_dict()
    dtype = str(next(model.parameters()).dtype)
    added = {"model.add_tokens": list(recipe.model.add_tokens)} if recipe.model.add_tokens else {}
    return {"base": fingerprint(model), "model.dtype": dtype, "method": tree["method"], **_stored(model), **added}


def _stored(model: nn.Module) -> dict[str, str]:
    found = quantisation_of(model)
    return {} if found is None else {"model.quantize": str(found)}


def _before(task: Task, model: nn.Module, held: Dataset, room: Room) -> dict[str, float]:
    """The base's own score, which an adapter that has not learned yet leaves as it is."""
    _tell(room.reporter, "eval", held)
    score = evaluated(task, model, held, room, "evaluation before training")
    room.reporter.on_note(f"before training: eval_loss {score['loss']:.4f}")
    return score


def _tell(reporter: Reporter, name: str, rows: Dataset) -> None:
    reporter.on_note(f"{name}: {rows}")
    if rows.dropped:
        reporter.on_note(f"{name}: dropped: {rows.why_dropped}")


def _report(recipe: Recipe, run: Run) -> None:
    page = study.Report(
        title=recipe.output,
        history=run.history,
        settings=recipe.to_yaml(),
        plan=str(plan(recipe)),
        ranks=inspect(str(run.adapter)).ranks,
        table=_before_and_after(recipe, run),
        samples=(),
        next_steps=next_steps(recipe, str(run.adapter)),
        summary=str(run),
    )
    durable.write_text(Path(recipe.output) / "report.html", study.html(page))


def _before_and_after(recipe: Recipe, run: Run) -> tuple[study.Measure, ...]:
    """The held-out loss of the base, which is the line of step 0, and of the adapter that was kept."""
    base = next((line for line in run.history if line.get("step") == 0), None)
    if base is None or run.eval is None:
        return ()
    loss = "held-out loss, nats a token" if recipe.task.writes_on else "held-out loss"
    named = {"eval_loss": loss, **{name: name.replace("_", " ") for name in recipe.task.metrics}}
    return tuple(study.Measure(named[name], base[name], run.eval[name]) for name in named if name in base)


def next_steps(recipe: Recipe, adapter: str) -> tuple[str, ...]:
    """What to type when a run is done."""
    held = recipe.data.eval if isinstance(recipe.data.eval, str) else "FILE"
    talk = f"lorica chat {adapter}" if recipe.task.writes_on else f"lorica generate {adapter} --prompt TEXT"
    merge = (f"lorica merge {adapter} --out {recipe.output}/merged",) if all(m.mergeable for m in recipe.method) else ()
    return (talk, f"lorica eval {adapter} --data {held}", f"lorica inspect {adapter}", *merge)
