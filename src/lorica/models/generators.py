"""The states of torch's global generators, from which other people's dropout draws: taken, and put back."""

from collections.abc import Mapping

import torch
from torch import Tensor


def states() -> dict[str, Tensor]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {"cpu": torch.get_rng_state(), **{f"cuda.{index}": torch.cuda.get_rng_state(index) for index in devices}}


def restore(states: Mapping[str, Tensor]) -> None:
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda.")))
