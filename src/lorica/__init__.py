"""Lorica: plan what fits, train at hardware speed, prove it worked, serve them all.

Every name below is imported when it is first used, so that `import lorica` is quick and `lorica --help` needs no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorica.adapter import Attached, Bank, Plan, Verification
    from lorica.api import (
        add_tokens,
        advise,
        attach,
        best_for,
        combine,
        data_report,
        evaluate,
        fit,
        generate,
        inspect,
        load,
        load_base,
        measure,
        merge,
        overlap,
        plan,
        residual,
        resize,
        statistics,
        train,
        verify,
    )
    from lorica.data import DataConfig, HoldOut
    from lorica.errors import (
        AdapterError,
        CheckpointError,
        DataError,
        DivergedError,
        LoricaError,
        ModelError,
        NoRoomError,
        QueueFullError,
        RecipeError,
        RequestError,
        RunError,
        TargetError,
        UnknownAdapterError,
    )
    from lorica.methods import (
        IA3,
        METHODS,
        AdaLoRA,
        BitFit,
        Bottleneck,
        DoRA,
        Full,
        HeadOnly,
        HiRA,
        LoHa,
        LoKr,
        LoRA,
        LoRAFA,
        Method,
        MultiLoRA,
        Norm,
        Prefix,
        Prompt,
        PTuning,
        PTuningV2,
        TrainableTokens,
        VeRA,
    )
    from lorica.recipe import ModelConfig, Recipe
    from lorica.train import Run, TrainConfig
    from lorica.train.of_transformers import Trainer

__version__ = "0.1.0"

__all__ = [
    "IA3",
    "METHODS",
    "AdaLoRA",
    "AdapterError",
    "Attached",
    "Bank",
    "BitFit",
    "Bottleneck",
    "CheckpointError",
    "DataConfig",
    "DataError",
    "DivergedError",
    "DoRA",
    "Full",
    "HeadOnly",
    "HiRA",
    "HoldOut",
    "LoHa",
    "LoKr",
    "LoRA",
    "LoRAFA",
    "LoricaError",
    "Method",
    "ModelConfig",
    "ModelError",
    "MultiLoRA",
    "NoRoomError",
    "Norm",
    "PTuning",
    "PTuningV2",
    "Plan",
    "Prefix",
    "Prompt",
    "QueueFullError",
    "Recipe",
    "RecipeError",
    "RequestError",
    "Run",
    "RunError",
    "TargetError",
    "TrainConfig",
    "TrainableTokens",
    "Trainer",
    "UnknownAdapterError",
    "VeRA",
    "Verification",
    "add_tokens",
    "advise",
    "attach",
    "best_for",
    "combine",
    "data_report",
    "evaluate",
    "fit",
    "generate",
    "inspect",
    "load",
    "load_base",
    "measure",
    "merge",
    "overlap",
    "plan",
    "residual",
    "resize",
    "statistics",
    "train",
    "verify",
]

ROOMS = {
    "adapter": ("Attached", "Bank", "Plan", "Verification"),
    "api": (
        "add_tokens",
        "advise",
        "attach",
        "best_for",
        "combine",
        "data_report",
        "evaluate",
        "fit",
        "generate",
        "inspect",
        "load",
        "load_base",
        "measure",
        "merge",
        "overlap",
        "plan",
        "residual",
        "resize",
        "statistics",
        "train",
        "verify",
    ),
    "data": ("DataConfig", "HoldOut"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "recipe": ("ModelConfig", "Recipe"),
    "train": ("Run", "TrainConfig"),
    "train.of_transformers": ("Trainer",),
}
HOME = {name: room for room, names in ROOMS.items() for name in names}
"""Where each name lives; all others are in `methods`."""


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module("lorica.train")
    if name not in __all__:
        raise AttributeError(f"module 'lorica' has no attribute {name!r}")
    value = getattr(import_module(f"lorica.{HOME.get(name, 'methods')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _TrainRoom(ModuleType):
    """The room `lorica.train`, called as the function that it is named after."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """`lorica.train(recipe, resume=False)`; see `lorica.api.train`."""
        return import_module("lorica.api").train(*arguments, **options)


class _Package(ModuleType):
    """Importing a room puts its module on the package: the one that shares a function's name is made callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" and isinstance(value, ModuleType):
            value.__class__ = _TrainRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
