"""Seconds that the digests of a generated checkpoint take: sampled and whole, cold and remembered.

    python benchmarks/fingerprints.py [gigabytes] [result.json]

Cold: the pages of the files are dropped first.  `cpu` is what the process used, whatever else the machine did.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine

from lorica import durable
from lorica.models import digests
from lorica.models.fingerprint import fingerprint_of_folder, whole_digest

TENSOR_BYTES = 8_000_000
"""A 2000 x 2000 matrix in bfloat16, as in a base of one billion parameters."""


def make(folder: Path, gigabytes: float) -> int:
    """Shards of about 500 MB whose tensors all differ; the number of tensors."""
    count = round(gigabytes * 1e9 / TENSOR_BYTES)
    noise = torch.randn(2000, 2000, generator=torch.Generator().manual_seed(0)).bfloat16()
    names = [f"model.layers.{index}.weight" for index in range(count)]
    shards = [names[at : at + 62] for at in range(0, count, 62)]
    with durable.new_folder(folder) as draft:
        where = {}
        for number, shard in enumerate(shards):
            tensors = {name: noise.roll(int(name.split(".")[2]), 1) for name in shard}
            draft.write_tensors(f"model-{number}.safetensors", tensors)
            where |= dict.fromkeys(shard, f"model-{number}.safetensors")
        draft.write_json("model.safetensors.index.json", {"weight_map": where})
    return count


def cold(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": round(time.perf_counter() - wall, 4), "cpu": round(time.process_time() - cpu, 4)}


def main(gigabytes: float, result: Path | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        folder = Path(place) / "base"
        tensors = make(folder, gigabytes)
        time.sleep(digests.SETTLED_NS / 1e9)
        found: dict[str, Any] = {"gigabytes": gigabytes, "tensors": tensors}
        for name, work in (("sampled", fingerprint_of_folder), ("whole", whole_digest)):
            cold(folder)
            found[f"{name}_cold_seconds"] = timed(lambda work=work: work(folder))
            found[f"{name}_remembered_seconds"] = timed(lambda work=work: work(folder))
    found["machine"] = machine()
    print(json.dumps(found, indent=2))
    if result is not None:
        durable.write_json(result, found)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.5, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
