"""lorica.json: what an adapter folder says about itself beyond what PEFT reads.

format    version of this file
files     bytes and SHA-256 of every file the loader reads
base      where the base came from, its fingerprint, and what was hashed: the stored checkpoint or tensors in memory
tokenizer hashes of the tokenizer and its chat template, where the base has one
added_tokens    what was added to its vocabulary before the adapter was attached
methods   the methods with all their fields; versions, of the libraries; the caller's facts: recipe, data, metrics
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from lorica.adapter.peft_format import base_name
from lorica.errors import RequestError
from lorica.methods import Method
from lorica.models import fingerprint
from lorica.models.vocabulary import added_tokens

NAME = "lorica.json"
FORMAT = 1
LIBRARIES = ("lorica", "torch", "transformers", "safetensors", "tokenizers")
OWN = ("format", "files", "base", "tokenizer", "methods", "versions", "parameters", "added_tokens")


def manifest(
    model: nn.Module, methods: tuple[Method, ...], files: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    taken = sorted(set(OWN) & facts.keys())
    if taken:
        raise RequestError(f"{NAME}: {', '.join(taken)} is written by the adapter itself; choose another name")
    return {
        "format": FORMAT,
        "files": dict(files),
        "base": base_facts(model),
        "tokenizer": tokenizer_facts(getattr(model, "tokenizer", None)),
        "methods": [{"name": method.kind, **method.model_dump(mode="json")} for method in methods],
        "versions": versions(),
        **({"added_tokens": list(added_tokens(model))} if added_tokens(model) else {}),
        **facts,
    }


def base_facts(model: nn.Module) -> dict[str, Any]:
    """Two fingerprints can be compared when they are of the same thing: `hashed` says of what."""
    stored = isinstance(getattr(model, "base_fingerprint", None), str)
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    return {
        "source": base_name(model),
        "fingerprint": fingerprint(model),
        "hashed": "checkpoint" if stored else f"memory {' '.join(dtypes)}",
    }


def other_base(recorded: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether an adapter was certainly trained on another base than this one."""
    here = base_facts(model)
    same_kind = recorded.get("hashed") == here["hashed"]
    return same_kind and recorded.get("fingerprint") != here["fingerprint"]


def tokenizer_facts(tokenizer: Any) -> dict[str, str] | None:
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    template = getattr(tokenizer, "chat_template", None)
    facts = {"sha256": _sha256(text)}
    return facts if template is None else facts | {"chat_template": _sha256(json.dumps(template, sort_keys=True))}


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
