"""Verified: an adapter folder is read, checked against its manifest, fitted to this base, and made to prove itself.

The proof is taken on a second set of modules around the same weights, so that the base can answer others meanwhile.
"""

import copy
import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from threading import Lock

from torch import nn

from lorica.adapter import AdapterFile, verify
from lorica.errors import AdapterError, LoricaError
from lorica.models import Probe, Reading, numerics


class Verifier:
    """One proof is taken at a time; reading and hashing files is not waited for."""

    def __init__(self, model: nn.Module) -> None:
        self._model = beside(model)
        self._lock = Lock()
        self._bare: dict[str, Reading] = {}
        """What the bare base answers, by its numerics, while it is served: nothing that is served changes it."""

    def __call__(self, folder: Path) -> AdapterFile:
        """What the folder holds, the very bytes that were checked.  AdapterError names every check that failed."""
        read: list[AdapterFile] = []
        with ExitStack() as held:

            def base(file: AdapterFile) -> nn.Module:
                held.enter_context(self._lock)
                read.append(file)
                return self._model

            try:
                found = verify(folder, base, bare=self._answers)
            except LoricaError as error:
                raise AdapterError(str(error)) from error
        if found.status == "failed" or not read:
            failed = [f"{folder}: {check.name}: {check.detail}" for check in found.checks if not check.ok]
            raise AdapterError.of(failed or [f"{folder}: not verified"])
        return read[0]

    def _answers(self, model: nn.Module, probe: Probe) -> Reading:
        """Called under the lock."""
        key = json.dumps(dict(numerics(model)), sort_keys=True, default=str)
        if key not in self._bare:
            self._bare[key] = probe.read(model)
        return self._bare[key]


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
