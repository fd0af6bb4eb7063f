"""What is wrong with a recipe, every problem at once: `method.rank: unknown key; did you mean 'r'?`"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from lorica.errors import did_you_mean
from lorica.methods import METHODS, LoRA
from lorica.tasks import TASKS

Loc = tuple[str | int, ...]

OTHER_NAMES = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_target": "target_modules",
    "targets": "target_modules",
    "lr": "learning_rate",
    "loraplus_lr_ratio": "lora_plus_ratio",
    "loraplus_lr_embedding": "lr_embedding",
    "batch_size": "rows_per_step",
    "per_device_train_batch_size": "rows_per_step",
    "gradient_accumulation_steps": "rows_per_step",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "max_grad_norm": "clip",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "path": "source",
    "name_or_path": "source",
    "torch_dtype": "dtype",
    "output_dir": "output",
}


def problems(error: ValidationError, root: type[BaseModel], tree: Any) -> list[str]:
    """One line a problem.  `tree` is what was validated against `root`."""
    found = [(_written(each, tree), each) for each in error.errors()]
    told = [_line(path, each, root, tree) for path, each in found if not _overshadowed(path, each, found)]
    return list(dict.fromkeys(told))


def _written(error: Any, tree: Any) -> Loc:
    """The path as the user wrote it, without the names of union members that pydantic puts between."""
    path: list[str | int] = []
    for part in error["loc"]:
        if _has(tree, part):
            tree = tree[part]
            path.append(part)
    return (*path, error["loc"][-1]) if error["type"] == "missing" else tuple(path)


def _has(tree: Any, part: str | int) -> bool:
    if isinstance(tree, Mapping):
        return part in tree
    return isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree)


def _overshadowed(path: Loc, error: Any, found: Sequence[tuple[Loc, Any]]) -> bool:
    """Of the members of a union, the one that the input came nearest to is the one meant; and a list whose entries
    are wrong is not said to be empty as well."""
    deeper = any(len(other) > len(path) and other[: len(path)] == path for other, _ in found)
    beside = any(other == path and each is not error for other, each in found)
    return deeper or (error["type"] == "too_short" and beside)


def _line(path: Loc, error: Any, root: type[BaseModel], tree: Any) -> str:
    where = ".".join(map(str, path)) or "recipe"
    if error["type"] == "peft_name" and path[-1] not in OTHER_NAMES:
        return f"{where}: {error['msg']}"
    if error["type"] in {"extra_forbidden", "peft_name"}:
        *above, key = map(str, path)
        if len(above) > 1 and above[0] != "method" and key in set(_known(path[:-2], root, tree)):
            return f"{where}: unknown key here; it is {'.'.join([*above[:-1], key])}"
        return f"{where}: {_unknown(key, set(_known(path[:-1], root, tree)))}"
    return f"{where}: {_complaint(error)}"


def _unknown(key: str, known: set[str]) -> str:
    if OTHER_NAMES.get(key) in known:
        return f"unknown key; did you mean {OTHER_NAMES[key]!r}?"
    near = did_you_mean(key, known)
    return f"unknown key{near}" if near else f"unknown key; it takes {', '.join(sorted(known))}"


def _known(path: Loc, root: type[BaseModel], tree: Any) -> Iterator[str]:
    if path[:1] == ("method",):
        yield from _method_keys(path, tree)
        return
    if path[:1] == ("task",):
        yield from ("name", *type(TASKS[tree["task"]["name"]]).model_fields)
        return
    yield from _fields(path, root, tree)


def _method_keys(path: Loc, tree: Any) -> Iterator[str]:
    depth = 0
    while not (isinstance(tree, Mapping) and tree.get("name") in METHODS):
        tree, depth = tree[path[depth]], depth + 1
    method = METHODS[tree["name"]]
    yield from _fields(path[depth:], method, tree)
    if not path[depth:]:
        yield from ("name", "preset") if issubclass(method, LoRA) else ("name",)


def _fields(path: Loc, root: type[BaseModel], tree: Any) -> Iterator[str]:
    """The keys at a path, as they are written."""
    for model in _models_at(path, root, tree):
        yield from (field.alias or name for name, field in model.model_fields.items())


def _models_at(path: Loc, root: type[BaseModel], tree: Any) -> list[type[BaseModel]]:
    models = [root]
    for part in path:
        fields = [model.model_fields[str(part)] for model in models if str(part) in model.model_fields]
        tree = tree[part] if _has(tree, part) else None
        models = _meant([model for field in fields for model in _models_in(field.annotation)], tree)
    return models


def _meant(models: list[type[BaseModel]], tree: Any) -> list[type[BaseModel]]:
    """Of several that are told apart by their `name`, the one that is named; without a name the first."""
    named = [model for model in models if "name" in model.model_fields]
    if len(named) < 2 or not isinstance(tree, Mapping):
        return models
    name = tree.get("name", named[0].model_fields["name"].default)
    return [model for model in named if model.model_fields["name"].default == name]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _complaint(error: Any) -> str:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return "is missing"
    if kind in {"value_error", "assertion_error"}:
        return str(error["ctx"]["error"])
    if kind == "union_tag_invalid":
        choices = error["ctx"]["expected_tags"]
        near = did_you_mean(str(error["ctx"]["tag"]), choices.replace("'", "").split(", "))
        return f"there is no {error['ctx']['tag']!r}{near}; there are {choices.replace(chr(39), '')}"
    if kind == "literal_error":
        choices = error["ctx"]["expected"]
        near = did_you_mean(str(value), choices.replace("'", "").replace(" or ", ", ").split(", "))
        return f"{value!r} is not one of {choices}{near}"
    message, _, _ = error["msg"].removeprefix("Input ").partition(", unable to parse")
    return f"{message}, not {_short(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
