"""Verified: an adapter folder is read, checked against its manifest, fitted to this base, and made to prove itself.

The proof is taken on a second set of modules around the same weights, so that the base can answer others meanwhile.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from torch import nn

from lorica.adapter import AdapterFile, Attached, Bare, Plan, verify
from lorica.adapter.installed import Modules
from lorica.errors import AdapterError, LoricaError
from lorica.models import Probe, Reading, numerics


@dataclass(frozen=True)
class Verified:
    """What a folder holds, the very bytes that were checked, and the modules that proved themselves."""

    file: AdapterFile
    plan: Plan
    modules: Modules


class Verifier:
    """One proof is taken at a time; reading and hashing files is not waited for."""

    def __init__(self, model: nn.Module) -> None:
        self._model = beside(model)
        self._lock = Lock()
        self._bare = Remembered()

    def __call__(self, folder: Path) -> Verified:
        """AdapterError names every check that failed."""
        read: list[AdapterFile] = []
        fitted: list[tuple[Plan, Modules]] = []
        with ExitStack() as held:

            def base(file: AdapterFile) -> nn.Module:
                held.enter_context(self._lock)
                read.append(file)
                return self._model

            def taken(attached: Attached) -> None:
                fitted.append((attached.plan, attached.modules))

            try:
                found = verify(folder, base, bare=self._bare, fitted=taken)
            except LoricaError as error:
                raise AdapterError(str(error)) from error
        if found.status == "failed" or not fitted:
            failed = [f"{folder}: {check.name}: {check.detail}" for check in found.checks if not check.ok]
            raise AdapterError.of(failed or [f"{folder}: not verified"])
        return Verified(read[0], *fitted[0])


class Remembered(Bare):
    """What a base answers and the words of its tokenizer: nothing that is served changes either.  Used by one thread
    at a time."""

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}
        self._tokenizers: list[Mapping[str, str] | None] = []

    def reading(self, model: nn.Module, probe: Probe) -> Reading:
        key = json.dumps(dict(numerics(model)), sort_keys=True, default=str)
        if key not in self._readings:
            self._readings[key] = super().reading(model, probe)
        return self._readings[key]

    def tokenizer(self, model: nn.Module) -> Mapping[str, str] | None:
        if not self._tokenizers:
            self._tokenizers.append(super().tokenizer(model))
        return self._tokenizers[0]


def beside(model: nn.Module) -> nn.Module:
    """A model of its own around the same tensors: what is installed on one is not on the other."""
    tensors = [*model.parameters(), *model.buffers()]
    plain = [value for name, value in vars(model).items() if not name.startswith("_")]
    shared = {id(value): value for value in (*tensors, *plain)}
    return copy.deepcopy(model, shared)


def digest_of(file: AdapterFile) -> str:
    """Of the tensors, and of what the config makes of them: a scale that changes is another adapter."""
    config = json.dumps(dict(file.config), sort_keys=True, default=str)
    methods = json.dumps([[each.kind, each.model_dump(mode="json")] for each in file.methods], sort_keys=True)
    return hashlib.sha256("\n".join([file.digest or "", config, methods]).encode()).hexdigest()
