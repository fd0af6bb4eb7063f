"""Adapter folders as they are saved, and forged so that nothing but outputs can tell."""

import json

import torch
from safetensors.torch import load_file, save_file

from lorica import adapter, durable
from lorica.methods import LoRA
from tiny_bases import LLAMA, stir

TENSORS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "lorica.json"


def saved(folder, base=LLAMA, method=None, dtype=torch.float32):
    attached = adapter.attach(base.build(dtype), method or LoRA(r=3, alpha=7))
    stir(attached.named_parameters())
    attached.save(folder)
    return attached


def forged(folder, change):
    """The folder after `change(tensors, config)`, with sizes and hashes that agree: only outputs can tell."""
    tensors, config = load_file(folder / TENSORS), json.loads((folder / CONFIG).read_text())
    change(tensors, config)
    save_file(tensors, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(config))
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, record in manifest["files"].items():
        record |= {"bytes": (folder / name).stat().st_size, "sha256": durable.sha256(folder / name)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def verified(folder, base=LLAMA, dtype=torch.float32, **options):
    return adapter.verify(folder, lambda file: base.build(dtype), **options)


def failing(found):
    return [check.name for check in found.checks if not check.ok]
