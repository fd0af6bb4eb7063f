"""What an adapter folder records about its making: the base to load, and how its rows were written to the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from lorica.adapter import AdapterFile, Attached, load, read
from lorica.adapter.fetch import folder_of as adapter_folder
from lorica.adapter.manifest import NAME
from lorica.adapter.origin import loading_of
from lorica.adapter.proof import recorded_dtype
from lorica.api.tasked import recorded_head
from lorica.data import DataConfig
from lorica.errors import AdapterError, LoricaError, RequestError, by_field
from lorica.models import add_tokens, load_base
from lorica.models.folder import folder_of, is_hub_id
from lorica.models.foreign import read_config, stated_quantisation
from lorica.models.vocabulary import missing_tokens
from lorica.recipe import Recipe

Place = str | Path


def base_of(adapter: Place, file: AdapterFile) -> str:
    """The recorded base where it may be trusted: `embedded`, a hub id, or the one of a run of one's own.

    A path that came with somebody else's adapter is not followed: `RequestError`, with what to type.
    """
    base = file.base
    if not base:
        raise RequestError(f"{adapter}: records no base; name it with --model")
    if base == "embedded" or (is_hub_id(base) and not Path(base).exists()) or _own_run(Path(adapter), base):
        return base
    raise RequestError(f"{adapter}: records the base {base}, a path, which may mean another thing here; give --model")


def _own_run(adapter: Path, base: str) -> bool:
    """Whether the folder lies in a run whose recipe names this base."""
    try:
        return Recipe.load(adapter.resolve().parent / "recipe.yaml").model.source == base
    except LoricaError:
        return False


def loaded(
    adapter: Place,
    model: str | nn.Module | None = None,
    *,
    base: bool = False,
    dtype: str | None = None,
    untrained: bool = False,
    other_base: bool = False,
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model with the adapter in place (without, where `base`), for evaluation, and what the adapter records."""
    options = {"untrained": untrained, "other_base": other_base}
    return loaded_with(adapter, model, base=base, dtype=dtype, **options)[:2]


def loaded_with(
    adapter: Place,
    model: str | nn.Module | None = None,
    *,
    base: bool = False,
    dtype: str | None = None,
    untrained: bool = False,
    other_base: bool = False,
) -> tuple[nn.Module, Mapping[str, Any], Attached | None]:
    """The same with the handle on the adapter; None where `base`."""
    file = read(adapter)
    source = model if model is not None else base_of(adapter, file)
    held = source if isinstance(source, nn.Module) else base_for(file, source, dtype)
    lacking = missing_tokens(held, (file.manifest or {}).get("added_tokens") or ())
    if lacking and isinstance(source, str):
        add_tokens(held, lacking)
    attached = None
    if not base:
        attached = load(held, file, trainable=False, untrained=untrained, other_base=other_base)
    return held.eval(), file.manifest or {}, attached


def base_for(file: AdapterFile, source: str, dtype: str | None = None) -> nn.Module:
    """The base as the adapter had it: with its head, and quantised as it was."""
    form = loading_of(file.manifest)
    if form and stated_quantisation(read_config(folder_of(source, weights=False))) is not None:
        form = {}
    then = recorded_dtype(file.manifest) if form else None
    return load_base(source, dtype=dtype or then, head=recorded_head(file.manifest), **form)


def unverified(adapter: Place) -> bool:
    """Whether others wrote the folder, so that nothing in it says what it was and what it did."""
    return not (adapter_folder(adapter) / NAME).is_file()


def data_config(manifest: Mapping[str, Any], source: str) -> DataConfig:
    """How the adapter's own rows were encoded, for rows from another source.  AdapterError where that is damaged."""
    recipe = manifest.get("recipe")
    made = recipe.get("data") if isinstance(recipe, Mapping) else None
    if not isinstance(made, Mapping):
        return DataConfig(train=source)
    try:
        return DataConfig.model_validate({**made, "train": source, "eval": None})
    except ValidationError as error:
        raise AdapterError.of([f"lorica.json: {told}" for told in by_field(error, "recipe.data")]) from error


def shape(manifest: Mapping[str, Any]) -> str | None:
    """The shape of the rows it was taught: prompt_completion, messages, text ...; None when nobody wrote it down."""
    made = manifest.get("data")
    found = made.get("shape") if isinstance(made, Mapping) else None
    return found if isinstance(found, str) else None
