"""Keys of PEFT's files, and how other programs spell them.

base_model.model.PATH.lora_A.weight             as PEFT writes it
PATH.lora_A.weight                              without the prefix
base_model.model.PATH.lora_A.NAME.weight        `state_dict()` with the adapter's name still in it
base_model.model._orig_mod.PATH.lora_A.weight   from a compiled or sharded model
"""

import re
from collections import Counter
from collections.abc import Collection

from lorica.errors import AdapterError

PREFIX = "base_model.model."
"""What PEFT puts before the path of every module in its files."""
FILE_NAME_END = re.compile(r"\.lora_(?:[AB]\.weight|embedding_[AB])$")
NAMED_END = re.compile(r"\.lora_(?:([AB])\.(?P<linear>[^.]+)\.weight|(embedding_[AB])\.(?P<embedding>[^.]+))$")
SAVED = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")
"""What torch.compile and FSDP put into the paths of the modules they wrap."""


def plain(keys: Collection[str]) -> dict[str, str]:
    """Each key as PEFT spells it.  AdapterError where two keys would be one, or several adapters share the file."""
    named = _is_named(keys)
    spelled = {key: _plain(key, named) for key in keys}
    known = set(spelled.values())
    # Beside the trained copy of a module's bias PEFT writes the same under the copy's own name.
    bare = {key: SAVED.sub("", name) for key, name in spelled.items()}
    spelled = {key: name if bare[key] in known else bare[key] for key, name in spelled.items()}
    twice = sorted(name for name, count in Counter(spelled.values()).items() if count > 1)
    if twice:
        raise AdapterError.of([f"{name}: in the file under two names; save the adapter again" for name in twice])
    return spelled


def _is_named(keys: Collection[str]) -> bool:
    """Whether the low-rank tensors carry the name of their adapter."""
    if any(FILE_NAME_END.search(key) for key in keys):
        return False
    found = [match for key in keys if (match := NAMED_END.search(key))]
    names = sorted({match["linear"] or match["embedding"] for match in found})
    if len(names) > 1:
        raise AdapterError(f"holds the adapters {', '.join(names)} at once; save each by itself with save_pretrained")
    return bool(names)


def _plain(key: str, named: bool) -> str:
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    if named:
        key = NAMED_END.sub(lambda match: f".lora_{match[1]}.weight" if match[1] else f".lora_{match[3]}", key)
    return key if key.startswith(PREFIX) else PREFIX + key
