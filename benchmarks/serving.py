"""Tokens a second of one base with many adapters: our engine beside transformers' generate and PEFT's mixed batch.

    python -m benchmarks.serving [--repetitions N] [--quick]

SmolLM2-135M's shape with weights at random in bfloat16, LoRA of rank 8 on every linear, noise in every tensor.  Every
request has a prompt of 32 tokens and writes 64, greedily; time is from submission to the last token.  All sides live in
one process and take turns.  That they compute the same is checked on the logits after the prompt, whose largest
distance is given as a share of the largest logit.
"""

import json
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.speed.shapes import SMOLLM2, TINY, checkpoint

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "serving.json", ROOT / "docs" / "serving-speed.md"
CLAIM = "one base answers eight adapters at once at most of its own rate, a multiple of PEFT's"
PROMPT, NEW, TOGETHER, R = 32, 64, 8, 8
REGISTERED, RESIDENT, SLOW = 100, 16, 5.0
Side = Callable[[], None]


class Bench:
    """The base three times, as each library holds it, and adapter folders that all can read."""

    def __init__(self, quick: bool) -> None:
        self.shape = TINY if quick else SMOLLM2
        self.folder = checkpoint(self.shape)
        self.new = 8 if quick else NEW
        g = torch.Generator().manual_seed(0)
        self.prompts = torch.randint(self.shape.vocabulary, (TOGETHER, PROMPT), generator=g)
        self.adapters = adapters(self.folder, REGISTERED)

    def transformers(self) -> Any:
        import transformers

        model = transformers.LlamaForCausalLM.from_pretrained(self.folder, dtype=torch.bfloat16).eval()
        model.generation_config.pad_token_id = 0
        model.generation_config.eos_token_id = None
        return model

    def peft(self) -> Any:
        """At its best: adapters in the type of the base."""
        import peft

        model = None
        for name, folder in self._eight():
            if model is None:
                model = peft.PeftModel.from_pretrained(
                    self.transformers(), folder, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)
        assert model is not None
        return model.to(torch.bfloat16).eval()

    def engine(self, count: int = TOGETHER, **shelf: Any) -> Any:
        import lorica
        from lorica.serve.engine import Engine, Limits, Shelf

        model = lorica.load_base(str(self.folder), dtype="bfloat16").eval()
        held = Shelf(lorica.Bank(model), **shelf)
        for name, folder in list(self.adapters.items())[:count]:
            held.load(name, folder)
        return Engine(model, held, Limits(running=16, cache_bytes=400_000_000))

    def _eight(self) -> Sequence[tuple[str, Path]]:
        return list(self.adapters.items())[:TOGETHER]


def adapters(base: Path, count: int) -> dict[str, Path]:
    """Folders written once."""
    import lorica

    place = base.parent.parent / "adapters" / base.name
    names = [f"a{number:03}" for number in range(count)]
    missing = [name for name in names if not (place / name / "lorica.json").exists()]
    if missing:
        attached = lorica.attach(lorica.load_base(str(base), dtype="bfloat16"), lorica.LoRA(r=R, alpha=16))
        for name in missing:
            generator = torch.Generator().manual_seed(int(name[1:]))
            with torch.no_grad():
                for parameter in attached.parameters():
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
            attached.save(place / name)
    return {name: place / name for name in names}


def answered(engine: Any, choices: Sequence[Any], prompts: torch.Tensor, new: int) -> list[list[float]]:
    """When each token of each request was heard, in seconds from submission."""
    from lorica.serve.engine import Ended, Request

    start, done = time.perf_counter(), threading.Semaphore(0)
    heard: list[list[float]] = [[] for _ in choices]
    failed: list[str] = []

    def listener(row: int) -> Callable[[Any], None]:
        def hear(event: Any) -> None:
            if isinstance(event, Ended):
                failed.extend([event.message] if event.reason != "length" else [])
                done.release()
            else:
                heard[row].append(time.perf_counter() - start)

        return hear

    for row, choice in enumerate(choices):
        tokens = tuple(prompts[row % len(prompts)].tolist())
        engine.submit(Request(tokens=tokens, max_tokens=new, choice=choice, tenant=str(time.time_ns())), listener(row))
    for _ in choices:
        done.acquire()
    if failed:
        raise RuntimeError(failed[0])
    return heard


def throughput(bench: Bench, told: Callable[[str], None], repetitions: int) -> dict[str, Any]:
    """Eight requests at once, and one alone, of every side in turn."""
    base, mixed, engine = bench.transformers(), bench.peft(), bench.engine()
    names, eight, one = list(bench.adapters)[:TOGETHER], bench.prompts, bench.prompts[:1]
    options: dict[str, Any] = {"max_new_tokens": bench.new, "min_new_tokens": bench.new, "do_sample": False}

    def generated(model: Any, rows: torch.Tensor, **more: Any) -> Side:
        return lambda: model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **options, **more)

    with engine, torch.inference_mode():
        sides: dict[str, tuple[int, Side]] = {
            "transformers, base alone": (TOGETHER, generated(base, eight)),
            "peft, eight adapters": (TOGETHER, generated(mixed, eight, adapter_names=names)),
            "lorica, base alone": (TOGETHER, lambda: answered(engine, [None] * TOGETHER, eight, bench.new)),
            "lorica, eight adapters": (TOGETHER, lambda: answered(engine, names, eight, bench.new)),
            "transformers, one request": (1, generated(base, one)),
            "lorica, one request": (1, lambda: answered(engine, [None], one, bench.new)),
            "lorica, one request with an adapter": (1, lambda: answered(engine, names[:1], one, bench.new)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(repetitions + 1):
            for name, (_, side) in sides.items():
                start = time.perf_counter()
                side()
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
            told(f"round {turn} of {repetitions}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items() if s))
        agreement = agreed(bench, base, mixed, engine, names)
    rates = {name: [rows * bench.new / one for one in seconds[name]] for name, (rows, _) in sides.items()}
    return {"tokens_per_second": {name: spread(found) for name, found in rates.items()}, "agreement": agreement}


def agreed(bench: Bench, base: Any, mixed: Any, engine: Any, names: list[str]) -> dict[str, float]:
    """The largest distance of our logits after the prompt from the peer's, as a share of the largest."""
    rows, bank = bench.prompts, engine.shelf.bank
    found = {}
    keys = {each.name: f"{each.name}#{each.generation}" for each in engine.shelf.list()}
    for name, choices, theirs in (
        ("base", [None] * TOGETHER, lambda: base(input_ids=rows).logits[:, -1]),
        ("adapters", [keys[name] for name in names], lambda: mixed(input_ids=rows, adapter_names=names).logits[:, -1]),
    ):
        with bank.use(choices) as model:
            ours, other = model(rows).logits[:, -1].float(), theirs().float()
        found[name] = float((ours - other).abs().max() / other.abs().max())
    return found


def many(bench: Bench, told: Callable[[str], None], repetitions: int) -> dict[str, Any]:
    """Sixteen requests over adapters that are all resident, and over a hundred of which sixteen may be."""
    count = RESIDENT if bench.new == NEW else 4
    with bench.engine(count) as few:
        held = few.stats().resident_bytes
        rates = [_rate(few, list(bench.adapters)[:count], bench) for _ in range(repetitions + 1)][1:]
    told(f"resident: {rates}")
    registered = REGISTERED if bench.new == NEW else 8
    with bench.engine(registered, device_bytes=held) as every:
        names = list(bench.adapters)[:registered]
        g = torch.Generator().manual_seed(1)
        draws = [[names[i] for i in torch.randperm(registered, generator=g)[:count]] for _ in range(repetitions + 1)]
        swapped = [_rate(every, chosen, bench) for chosen in draws][1:]
        stats = every.stats()
    told(f"of a hundred: {swapped}")
    return {
        "registered": registered,
        "resident": stats.resident,
        "tokens_per_second, all resident": spread(rates),
        "tokens_per_second, drawn of all": spread(swapped),
    }


def _rate(engine: Any, choices: Sequence[Any], bench: Bench) -> float:
    heard = answered(engine, choices, bench.prompts, bench.new)
    return len(choices) * bench.new / max(times[-1] for times in heard)


def slow_load(bench: Bench, told: Callable[[str], None], repetitions: int) -> dict[str, Any]:
    """Milliseconds between the tokens of eight requests, without a load and while one takes five seconds to read, in
    turn."""
    names, slow = list(bench.adapters)[:TOGETHER], list(bench.adapters.items())[TOGETHER]
    seconds = SLOW if bench.new == NEW else 0.2
    with bench.engine() as engine:
        verified = engine.shelf._verified

        def slowly(folder: Path) -> Any:
            time.sleep(seconds)
            return verified(folder)

        engine.shelf._verified = slowly
        _gaps(engine, names, bench)
        without: list[list[float]] = []
        during: list[list[float]] = []
        for turn in range(repetitions):
            loader = threading.Thread(target=engine.shelf.load, args=slow)
            loader.start()
            during.append([])
            while loader.is_alive():
                during[-1] += _gaps(engine, names, bench)
            engine.shelf.unload(slow[0])
            without.append(_gaps(engine, names, bench) + _gaps(engine, names, bench))
            told(
                f"{turn + 1} of {repetitions}: gaps {median(without[-1]):.1f} ms, {median(during[-1]):.1f} ms meanwhile"
            )
    return {
        "seconds": seconds,
        "without_ms": spread([median(gaps) for gaps in without]),
        "during_ms": spread([median(gaps) for gaps in during]),
        "mean_without_ms": round(mean(gap for gaps in without for gap in gaps), 3),
        "mean_during_ms": round(mean(gap for gaps in during for gap in gaps), 3),
        "longest_during_ms": round(max(gap for gaps in during for gap in gaps), 3),
    }


def _gaps(engine: Any, names: Sequence[Any], bench: Bench) -> list[float]:
    heard = answered(engine, names, bench.prompts, bench.new)
    return [1e3 * (b - a) for times in heard for a, b in pairwise(times)]


def spread(found: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(found), 3), "low": round(min(found), 3), "high": round(max(found), 3)}


def verdicts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the parts that were measured."""
    rate = {name: each["median"] for name, each in found["throughput"]["tokens_per_second"].items()}
    eight, ours, peer = "lorica, eight adapters", "lorica, one request", "transformers, one request"
    rows = [
        ("eight adapters, tokens/s: Lorica / PEFT", "least", 4.0, rate[eight] / rate["peft, eight adapters"]),
        ("tokens/s: eight adapters / our base alone", "least", 0.65, rate[eight] / rate["lorica, base alone"]),
        ("one request, tokens/s: Lorica / transformers", "least", 1.3, rate[ours] / rate[peer]),
    ]
    if "many" in found:
        resident, drawn = (
            found["many"][f"tokens_per_second, {how}"]["median"] for how in ("all resident", "drawn of all")
        )
        rows.append(("16 requests, tokens/s: all resident / drawn of 100 adapters", "most", 1.5, resident / drawn))
    if "slow_load" in found:
        gaps = found["slow_load"]["during_ms"]["median"] / found["slow_load"]["without_ms"]["median"]
        rows.append(("time between tokens: while an adapter loads / without", "most", 1.1, gaps))
    return [
        {"figure": figure, "at": at, "wanted": wanted, "found": round(value, 3), "met": _met(at, value, wanted)}
        for figure, at, wanted, value in rows
    ]


def _met(at: str, value: float, wanted: float) -> bool:
    return value >= wanted if at == "least" else value <= wanted


def page(result: dict[str, Any]) -> str:
    about = result["machine"]
    lines = [
        "# Serving, measured",
        "",
        "Made by `python -m benchmarks.serving` from `benchmarks/results/serving.json`; do not edit.",
        "SmolLM2-135M's shape with weights at random in bfloat16, LoRA of rank 8 on every linear; prompts of "
        f"{PROMPT} tokens, {NEW} written greedily, timed from submission to the last token, all sides in turn "
        "in one process.",
        f"{about['cores']} cores of {about['processor']}; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + ". CUDA was not measured.",
        "",
        "| figure | wanted | measured |  |",
        "| --- | --- | --- | --- |",
        *(
            f"| {v['figure']} | at {v['at']} {v['wanted']:.2f} | {v['found']:.2f} | {_told(v['met'])} |"
            for v in result["wanted"]
        ),
        "",
        "| side | tokens/s |",
        "| --- | --- |",
        *(
            f"| {name} | {each['median']:.0f} [{each['low']:.0f}, {each['high']:.0f}] |"
            for name, each in result["throughput"]["tokens_per_second"].items()
        ),
        "",
        "Logits after the prompt differ from the peer's by at most "
        + ", ".join(f"{share:.1e} of the largest ({name})" for name, share in result["throughput"]["agreement"].items())
        + ".",
        *_others(result),
    ]
    return "\n".join(lines) + "\n"


def _others(result: dict[str, Any]) -> list[str]:
    if "many" not in result or "slow_load" not in result:
        return ["", "More adapters than fit in memory, and a slow load, were not measured in this run."]
    many, load = result["many"], result["slow_load"]
    return [
        "",
        f"{many['registered']} adapters registered, {many['resident']} of them in memory at the end; an adapter that "
        f"takes {load['seconds']:.0f} s to read is loaded while eight requests are answered: "
        f"{load['without_ms']['median']:.1f} ms between tokens without it, {load['during_ms']['median']:.1f} ms "
        f"meanwhile (medians; means {load['mean_without_ms']:.1f} and {load['mean_during_ms']:.1f} ms, the longest "
        f"{load['longest_during_ms']:.0f} ms).",
    ]


def _told(met: bool) -> str:
    return "met" if met else "**not met**"


PARTS = {"throughput": throughput, "many": many, "slow_load": slow_load}


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.serving", description=sys.modules[__name__].__doc__)
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to see that all sides run; nothing is kept")
    parser.add_argument("--only", action="append", default=[], choices=list(PARTS), help="throughput is always needed")
    options = parser.parse_args()
    bench, repetitions = Bench(options.quick), 1 if options.quick else options.repetitions

    def told(line: str) -> None:
        print(line, flush=True)

    found: dict[str, Any] = {"claim": CLAIM, "machine": machine()}
    for name, part in PARTS.items():
        if not options.only or name in options.only:
            found[name] = part(bench, told, repetitions)
    found["wanted"] = verdicts(found)
    told(page(found))
    if not options.quick:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
