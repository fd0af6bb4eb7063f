"""Keys of PEFT's files, and how other programs spell them.

base_model.model.PATH.lora_A.weight             as PEFT writes it
PATH.lora_A.weight                              without the prefix
base_model.model.PATH.lora_A.NAME.weight        `state_dict()` with the adapter's name still in it
base_model.model._orig_mod.PATH.lora_A.weight   from a compiled or sharded model
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from lorica.errors import AdapterError

PREFIX = "base_model.model."
"""What PEFT puts before the path of every module in its files."""
SAVED = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")
"""What torch.compile and FSDP put into the paths of the modules they wrap."""


def plain(keys: Collection[str], ends: Sequence[str]) -> dict[str, str]:
    """Each key as PEFT spells it, where `ends` are those of a method's own tensors.  AdapterError where two keys would
    be one, or several adapters share the file."""
    unnamed = _unnaming(keys, ends)
    spelled = {key: _plain(key, unnamed) for key in keys}
    known = set(spelled.values())
    # Beside the trained copy of a module's bias PEFT writes the same under the copy's own name.
    bare = {key: SAVED.sub("", name) for key, name in spelled.items()}
    spelled = {key: name if bare[key] in known else bare[key] for key, name in spelled.items()}
    twice = sorted(name for name, count in Counter(spelled.values()).items() if count > 1)
    if twice:
        raise AdapterError.of([f"{name}: in the file under two names; save the adapter again" for name in twice])
    return spelled


def _unnaming(keys: Collection[str], ends: Sequence[str]) -> Callable[[str], str]:
    """What takes the name of the adapter out of its tensors' keys, where they carry it."""
    if not ends or any(key.endswith(tuple(ends)) for key in keys):
        return lambda key: key
    named = re.compile("|".join(f"(?:{_named(end, index)})" for index, end in enumerate(ends)))
    found = [match for key in keys if (match := named.search(key))]
    names = sorted({match[f"name{index}"] for match in found for index in range(len(ends)) if match[f"name{index}"]})
    if len(names) > 1:
        raise AdapterError(f"holds the adapters {', '.join(names)} at once; save each by itself with save_pretrained")
    return lambda key: named.sub(lambda match: next(ends[i] for i in range(len(ends)) if match[f"name{i}"]), key)


def _named(end: str, index: int) -> str:
    """`.lora_A.weight` with a name in it: `.lora_A.NAME.weight`."""
    stem = re.escape(end.removesuffix(".weight"))
    return rf"{stem}\.(?P<name{index}>[^.]+){re.escape('.weight') if end.endswith('.weight') else ''}$"


def _plain(key: str, unnamed: Callable[[str], str]) -> str:
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    key = unnamed(key)
    return key if key.startswith(PREFIX) else PREFIX + key
