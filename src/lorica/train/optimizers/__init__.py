"""Optimisers: one file each, with its equation on the first screen.  OPTIMIZERS is the vocabulary of recipes."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from lorica.methods.contract import Role
from lorica.train.optimizers.adafactor import Adafactor, AdafactorConfig
from lorica.train.optimizers.adamw import AdamW, AdamWConfig
from lorica.train.optimizers.contract import ADAMW_RATE, Config, Optimizer, Parameters
from lorica.train.optimizers.lion import Lion, LionConfig
from lorica.train.optimizers.muon import Muon, MuonConfig
from lorica.train.optimizers.sgd import SGD, SGDConfig
from lorica.train.paging import State

OptimizerConfig = Annotated[
    AdamWConfig | AdafactorConfig | LionConfig | MuonConfig | SGDConfig, Field(discriminator="name")
]
OPTIMIZERS: Mapping[str, tuple[type[Config], Any]] = {
    "adamw": (AdamWConfig, AdamW),
    "adafactor": (AdafactorConfig, Adafactor),
    "lion": (LionConfig, Lion),
    "muon": (MuonConfig, Muon),
    "sgd": (SGDConfig, SGD),
}


def optimizer(
    config: Config,
    parameters: Parameters,
    factors: Mapping[str, float] | None = None,
    roles: Mapping[str, Role] | None = None,
    state: State | None = None,
) -> Optimizer:
    """The optimiser of a config over named parameters.

    factors  of the learning rate, by the same names; 1 where none is given
    roles    what each is to its method: vectors, whatever their shape, do not decay and are none of Muon's matrices
    state    where its state is; None: on the device of the parameters
    """
    _, algorithm = OPTIMIZERS[config.name]
    return algorithm(parameters, config, factors, roles, state)


__all__ = ["ADAMW_RATE", "OPTIMIZERS", "Config", "Optimizer", "OptimizerConfig", "optimizer"]
