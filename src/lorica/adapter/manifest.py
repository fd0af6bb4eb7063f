"""lorica.json: what an adapter folder says about itself beyond what PEFT reads.

format    version of this file
files     bytes and SHA-256 of every file the loader reads
base      where the base came from, its fingerprint, and what was hashed: the stored checkpoint or tensors in memory
tokenizer hashes of the tokenizer and its chat template, where the base has one
proof     what the base answers to a probe, bare and adapted (`proof.py`), or why nothing was asked
made      how it was made, and `parents`, the adapters it was made from (`lineage.py`)
head      kind, labels and seed of the head that was put on the base, where one was
added_tokens    what was added to its vocabulary before the adapter was attached
unfinished      why the adapter is not yet what its method ends with; absent where it is
cut_short       the step that left it so, and the one after which its run was cut short, of how many
methods   the methods with all their fields; versions, of the libraries; the caller's facts: recipe, data, metrics
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from lorica.adapter.lineage import NAME
from lorica.adapter.origin import base_facts
from lorica.adapter.proof import Record
from lorica.errors import RequestError
from lorica.methods import Method
from lorica.models import Head
from lorica.models.vocabulary import added_tokens

__all__ = ["FORMAT", "NAME", "Ground", "manifest", "tokenizer_facts", "versions"]

FORMAT = 1
LIBRARIES = ("lorica", "torch", "transformers", "safetensors", "tokenizers")
OWN = ("format", "files", "base", "tokenizer", "proof", "methods", "versions", "parameters", "added_tokens", "head")


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What lorica.json says of the base: what the base itself tells, or, where none is at hand, what the adapters that
    were made on it say."""

    base: Mapping[str, Any]
    tokenizer: Mapping[str, Any] | None = None
    head: Mapping[str, Any] | None = None
    added_tokens: Sequence[Any] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "Ground":
        head = getattr(model, "head", None)
        return cls(
            base=base_facts(model),
            tokenizer=tokenizer_facts(getattr(model, "tokenizer", None)),
            head=head.to_dict() if isinstance(head, Head) else None,
            added_tokens=added_tokens(model),
        )

    @classmethod
    def recorded(cls, manifest: Mapping[str, Any]) -> "Ground":
        """As another adapter's lorica.json has it."""
        base, words = manifest.get("base"), manifest.get("tokenizer")
        return cls(
            base=base if isinstance(base, Mapping) else {},
            tokenizer=words if isinstance(words, Mapping) else None,
            added_tokens=manifest.get("added_tokens") or (),
        )


def manifest(
    ground: Ground,
    methods: tuple[Method, ...],
    files: Mapping[str, Any],
    proof: Record,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    taken = sorted(set(OWN) & facts.keys())
    if taken:
        raise RequestError(f"{NAME}: {', '.join(taken)} is written by the adapter itself; choose another name")
    return {
        "format": FORMAT,
        "files": dict(files),
        "base": dict(ground.base),
        "tokenizer": ground.tokenizer,
        "proof": proof.to_dict(),
        "methods": [{"name": method.kind, **method.model_dump(mode="json")} for method in methods],
        "versions": versions(),
        **({"head": ground.head} if ground.head else {}),
        **({"added_tokens": list(ground.added_tokens)} if ground.added_tokens else {}),
        **facts,
    }


def tokenizer_facts(tokenizer: Any) -> dict[str, str] | None:
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = tokenizer.get_vocab() if backend is None else _without_habits(json.loads(backend.to_str()))
    text = json.dumps(words, sort_keys=True)
    template = getattr(tokenizer, "chat_template", None)
    facts = {"sha256": _sha256(text)}
    return facts if template is None else facts | {"chat_template": _sha256(json.dumps(template, sort_keys=True))}


def _without_habits(words: dict[str, Any]) -> dict[str, Any]:
    """Padding and truncation are set by each call, and say nothing of the words."""
    return {name: value for name, value in words.items() if name not in ("padding", "truncation")}


def versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
