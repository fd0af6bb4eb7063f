"""What may happen when damaged adapter files are loaded, and whether it did.

    with an honest lorica.json      the tensors and settings that were saved, to the bit, or AdapterError
    without, or with one forged     every tensor as safetensors itself reads it, finite, each asked for and none beside,
                                    scaled as adapter_config.json says; or AdapterError

Never another error, more than LIMIT seconds of the processor, or an error that is not plain lines of text.
"""

import json
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from campaign.adapters import CONFIG, MANIFEST, METHODS, TENSORS, Case, Contents, Tiny, specimen
from lorica import AdapterError, adapter
from lorica.adapter import file as adapter_file

LIMIT = 2.0
"""Seconds of processor time, which other work on the machine does not lengthen."""
NAMED_FAILURES = 20


class Hang(BaseException):
    pass


@dataclass
class Tally:
    """Counts of what happened, by kind of damage; the first failures in full."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    slowest: float = 0.0

    def add(self, case: Case, verdict: str, seconds: float) -> None:
        kind = self.counts.setdefault(case.what, {})
        failed = verdict.startswith("FAILED")
        word = "failed" if failed else verdict
        kind[word] = kind.get(word, 0) + 1
        self.slowest = max(self.slowest, seconds)
        self.failed += failed
        if failed and len(self.failures) < NAMED_FAILURES:
            self.failures.append(f"{case.what}: {verdict}")

    def join(self, other: "Tally") -> None:
        for what, verdicts in other.counts.items():
            kind = self.counts.setdefault(what, {})
            for verdict, count in verdicts.items():
                kind[verdict] = kind.get(verdict, 0) + count
        self.failures = [*self.failures, *other.failures][:NAMED_FAILURES]
        self.failed += other.failed
        self.slowest = max(self.slowest, other.slowest)

    @property
    def total(self) -> int:
        return sum(sum(kind.values()) for kind in self.counts.values())


REFUSED, IDENTICAL, OTHER = "refused", "identical", "other values, well formed"


class Judge:
    """One base, on which every case is loaded and taken off again."""

    def __init__(self) -> None:
        self.model = Tiny()
        self.saved = {name: self._loaded(specimen(name)) for name in METHODS}

    def __call__(self, case: Case, tally: Tally, limit: float = LIMIT) -> str:
        started = time.process_time()
        verdict = self._verdict(case, limit)
        tally.add(case, verdict, time.process_time() - started)
        return verdict

    def _verdict(self, case: Case, limit: float) -> str:
        try:
            with limited(limit):
                found = self._loaded(case.contents)
        except AdapterError as error:
            return REFUSED if plain(str(error)) else f"FAILED: the error is not plain text: {str(error)!r:.300}"
        except Hang:
            self.model = Tiny()
            return f"FAILED: took more than {limit} s"
        except Exception as error:
            self.model = Tiny()
            return f"FAILED: {type(error).__name__}: {error!s:.300}"
        if any(same(found, saved) for saved in self.saved.values()):
            return IDENTICAL
        if MANIFEST in case.contents and not case.what.endswith("signed again"):
            return "FAILED: accepted damage"
        wrong = misread(case.contents, found)
        return f"FAILED: {wrong}" if wrong else OTHER

    def _loaded(self, contents: Contents) -> "Loaded":
        buffers = {name: bytearray(data) for name, data in contents.items()}
        file = adapter_file.parsed(Path("adapter"), buffers, "adapter")
        attached = adapter.load(self.model, file)
        tensors = {key: tensor.clone() for key, tensor in attached.state().items()}
        scales = {name: float(getattr(module, "scale", 1.0)) for (name, _), module in attached.modules.items()}
        attached.detach()
        return Loaded(tensors, scales)


@dataclass(frozen=True)
class Loaded:
    """Tensors by key, and the scale of each site."""

    tensors: Mapping[str, Tensor]
    scales: Mapping[str, float]


def same(one: Loaded, other: Loaded) -> bool:
    """Equal to the bit: -0.0 is not 0.0."""
    if one.tensors.keys() != other.tensors.keys() or one.scales != other.scales:
        return False
    return all(_bits(tensor) == _bits(other.tensors[key]) for key, tensor in one.tensors.items())


def misread(contents: Contents, found: Loaded) -> str | None:
    """What of an accepted file is not as safetensors and PEFT's own rules read it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        theirs = load(contents[TENSORS])
    except SafetensorError as error:
        return f"safetensors refuses what was accepted ({error})"
    if theirs.keys() != found.tensors.keys():
        return f"keys {sorted(theirs.keys() ^ found.tensors.keys())} were added or lost"
    for key, tensor in theirs.items():
        if not tensor.isfinite().all():
            return f"{key} is not finite and was accepted"
        if not torch.equal(tensor.float(), found.tensors[key].float()):
            return f"{key} was read as other values"
    return _misscaled(json.loads(contents[CONFIG]), found)


def _misscaled(config: Mapping[str, Any], found: Loaded) -> str | None:
    if config.get("peft_type") != "LORA":
        return None
    for name, scale in found.scales.items():
        A = found.tensors.get(f"base_model.model.{name}.lora_A.weight")
        if A is not None and scale != _peft_scale(config, name, A.shape[0]):
            return f"{name} is scaled by {scale}"
    return None


def _peft_scale(config: Mapping[str, Any], name: str, r: int) -> float:
    """PEFT's rule: the first pattern that matches, over the rank, or over its root with rsLoRA."""
    patterns = config.get("alpha_pattern") or {}
    alpha = config["lora_alpha"] if config.get("lora_alpha") is not None else 8
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), alpha)
    return float(alpha) / (r**0.5 if config.get("use_rslora") else r)


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def plain(text: str) -> bool:
    lines = text.split("\n")
    return 0 < len(lines) <= 30 and all(line.isprintable() and 0 < len(line) < 2000 for line in lines)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """`Hang` inside once this much processor time is used."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
