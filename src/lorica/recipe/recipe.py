"""The recipe: which base, which method, what data, how to train, and where the run goes.

    model: HuggingFaceTB/SmolLM2-135M
    method: {name: lora, r: 8, alpha: 16, target_modules: all-linear}
    data: {train: train.jsonl, eval: eval.jsonl, max_length: 1024}
    train: {epochs: 3, rows_per_step: 32, learning_rate: 2.0e-4}
    output: runs/sql

A plain string stands for the first key of its mapping (`model: X`, `method: lora`, `task: regression`), `method` may be
a list, and `method: {preset: small}` (medium, large) stands for the numbers of a LoRA of that size.  Relative paths
start from the folder in which the command runs, as everywhere in a shell.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from lorica.data import DataConfig
from lorica.errors import RecipeError, did_you_mean
from lorica.methods import METHODS, LoRA, Method
from lorica.recipe import text
from lorica.recipe.problems import problems
from lorica.tasks import TASKS, Task, task_of
from lorica.train import TrainConfig
from lorica.train.config import unevaluated

LARGEST = 1 << 20


class ModelConfig(BaseModel):
    """The base: `embedded`, a folder or a hub id, and how its weights are held."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="None: as stored")
    quantize: Literal["nf4", "fp4", "int8"] | None = None
    double_quant: bool = False
    device: str | None = Field(default=None, description="None: the GPU where there is one")
    host_layers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        default=0, description="blocks whose weights are fetched as they are used; auto: as many as memory demands"
    )
    add_tokens: tuple[str, ...] = Field(default=(), description="added to the vocabulary; LoRA trains their rows")


def _method(value: Any) -> Method:
    if isinstance(value, Method):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError(f"names one of {', '.join(METHODS)}, as in `method: lora` or `method: {{name: lora, r: 8}}`")
    name = value["name"]
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}{did_you_mean(name, METHODS)}; there are {', '.join(METHODS)}")
    return _built(METHODS[name], {key: entry for key, entry in value.items() if key != "name"})


def _built(kind: type[Method], entries: dict[str, Any]) -> Method:
    """The method, or all that is wrong with its entries: names of PEFT as well as what those of ours hold."""
    theirs = [key for key in entries if key in kind.peft_names]
    if not theirs:
        return kind.model_validate(entries)
    details = [_peft_name(kind, key, entries[key]) for key in theirs]
    try:
        kind.model_validate({key: entry for key, entry in entries.items() if key not in theirs})
    except ValidationError as error:
        details += [InitErrorDetails(**_detail(each)) for each in error.errors()]
    raise ValidationError.from_exception_data(kind.kind, details)


def _peft_name(kind: type[Method], key: str, value: Any) -> InitErrorDetails:
    told = PydanticCustomError("peft_name", "that is PEFT's name: {remedy}", {"remedy": kind.peft_names[key]})
    return InitErrorDetails(type=told, loc=(key,), input=value)


def _detail(error: Any) -> Any:
    return {key: error[key] for key in ("type", "loc", "input", "ctx") if key in error}


def _named(method: Method) -> dict[str, Any]:
    return {"name": method.kind, **method.model_dump(mode="json", exclude_none=True)}


MethodEntry = Annotated[Method, PlainValidator(_method), PlainSerializer(_named)]
TaskEntry = Annotated[Task, PlainValidator(task_of), PlainSerializer(Task.to_entry)]


class Recipe(BaseModel):
    """A whole run as one frozen value.  Raises `RecipeError` with every problem, each with its path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    method: Annotated[tuple[MethodEntry, ...], Field(min_length=1)]
    data: DataConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    task: TaskEntry = TASKS["causal_lm"]
    output: str = Field(default="runs/adapter", min_length=1)

    def __init__(self, **entries: Any) -> None:
        tree = _expanded(entries)
        try:
            super().__init__(**_listed(tree))
        except ValidationError as error:
            raise RecipeError.of(problems(error, type(self), tree)) from error
        if self.train.patience is not None and self.data.eval is None:
            raise RecipeError(unevaluated(self.train.patience))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """The recipe in a file, with `overrides` such as `method.r=16`, whose values are read as YAML.

        Without an `output`, the run goes to `runs/` under the file's own name.
        """
        tree = _expanded({"output": f"runs/{Path(path).stem}", **_tree(Path(path))})
        for override in overrides:
            _set(tree, override)
        return cls(**tree)

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """This recipe with settings such as `{"method.r": 16}`."""
        tree = self.to_dict()
        for key, value in settings.items():
            _put(tree, key, value)
        return type(self)(**tree)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain values that build the same recipe again."""
        tree = self.model_dump(mode="json", exclude_none=True)
        if len(self.method) == 1:
            tree["method"] = tree["method"][0]
        return tree

    def to_yaml(self) -> str:
        return text.write(self.to_dict())

    def __str__(self) -> str:
        return self.to_yaml()


FIRST_KEYS = {
    "model": "source",
    "method": "name",
    "task": "name",
    "data": next(iter(DataConfig.model_fields)),
    "train": next(iter(TrainConfig.model_fields)),
}


def _tree(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError(f"{path}: larger than 1 MB, which is no recipe")
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe{_similar(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    tree = text.read(content, str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    return tree


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return did_you_mean(path.name, (each.name for each in path.parent.glob("*.yaml")))


def _expanded(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Plain strings put under the first key of their mapping."""
    return {key: _mapping(key, value) for key, value in entries.items()}


def _listed(tree: dict[str, Any]) -> dict[str, Any]:
    if "method" not in tree or isinstance(tree["method"], list | tuple):
        return tree
    return {**tree, "method": [tree["method"]]}


def _mapping(section: str, value: Any) -> Any:
    if section == "method" and isinstance(value, list | tuple):
        return [_mapping(section, each) for each in value]
    if section == "method" and isinstance(value, Mapping) and "preset" in value:
        return {"name": LoRA.kind, **value}
    return {FIRST_KEYS[section]: value} if section in FIRST_KEYS and isinstance(value, str) else value


def _set(tree: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise RecipeError(f"--set {override}: write a key and a value, as in method.r=16")
    _put(tree, path, text.read(value, f"--set {path}"))


def _put(tree: dict[str, Any], path: str, new: Any) -> None:
    keys = path.split(".")
    place: Any = tree
    for depth, key in enumerate(keys[:-1], 1):
        place = _inside(place, key, f"--set {path}: {'.'.join(keys[:depth])}")
    if place is tree:
        tree[keys[-1]] = _mapping(keys[-1], new)
    elif isinstance(place, dict):
        place[keys[-1]] = new
    else:
        raise RecipeError(f"--set {path}: {'.'.join(keys[:-1])} is a list; set an entry's key, as in method.0.r=16")


def _inside(place: Any, key: str, where: str) -> Any:
    """What stands under `key`; a mapping that is not there yet is made."""
    if isinstance(place, list):
        if not key.isdigit() or int(key) >= len(place):
            raise RecipeError(f"{where}: this is a list; name one of its entries, 0 to {len(place) - 1}")
        return place[int(key)]
    found = place.setdefault(key, {}) if isinstance(place, dict) else place
    if not isinstance(found, dict | list):
        raise RecipeError(f"{where} is {found!r}, which has no keys of its own")
    return found
