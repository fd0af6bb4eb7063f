"""QLoRA beside LoRA on the base in bfloat16: the quickstart's task and C headers, each by the command line.

    python -m benchmarks.qlora [--result FILE]

The gain of a run is what training changes on held-out rows; the weights' bytes are those the loaded base holds.
"""

import json
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import lorica
from benchmarks.machine import machine
from lorica.quickstart.questions import generate
from lorica.quickstart.run import write_run
from lorica.quickstart.score import score

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "qlora.json"
CLAIM = "on a base in NF4 an adapter has at least 80 % of the gain that LoRA has on the base in bfloat16"
FORMS: dict[str, dict[str, Any]] = {"bfloat16": {}, "nf4": {"quantize": "nf4", "double_quant": True}}
QUESTIONS, SEED = 300, 0


def command(*words: str) -> dict[str, Any]:
    call = [sys.executable, "-m", "lorica", *words, "--json"]
    return json.loads(subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


def quickstart(name: str, form: dict[str, Any]) -> dict[str, float]:
    """Execution accuracy of 300 held-out questions."""
    folder = ROOT / "runs" / "qlora" / f"quickstart-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    test = list(generate("test", QUESTIONS, SEED))
    recipe = write_run(folder, test, SEED)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=form)})
    model = lorica.load_base("embedded", **form)
    before = score(model, test).execution_accuracy
    run = lorica.train(recipe)
    lorica.load(model, str(run.adapter), trainable=False)
    return {"before": before, "after": score(model, test).execution_accuracy}


def headers(name: str, form: dict[str, Any]) -> dict[str, float]:
    """Nats a token of held-out header files, less of which is better."""
    output = f"runs/qlora/c-headers-{name}"
    shutil.rmtree(ROOT / output, ignore_errors=True)
    settings = [word for key, value in form.items() for word in ("--set", f"model.{key}={json.dumps(value)}")]
    run = command("train", "recipes/c-headers.yaml", "--set", f"output={output}", *settings)
    lines = [json.loads(line) for line in (ROOT / output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return {"before": losses[0], "after": run["eval"]["eval_loss"], "peak_bytes": run["peak_bytes"]}


def bytes_of(form: dict[str, Any]) -> dict[str, int]:
    model = lorica.load_base("embedded", **form)
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return {"held": sum(held.values()), "forecast": lorica.plan(model, lorica.LoRA(r=8)).memory.weights}


def compared(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    gains = {name: abs(run["after"] - run["before"]) for name, run in found.items()}
    share = gains["nf4"] / gains["bfloat16"]
    return {**found, "gains": gains, "share": round(share, 4), "met": share >= 0.8}


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.qlora", description=__doc__)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    found: dict[str, Any] = {"claim": CLAIM, "weights": {name: bytes_of(form) for name, form in FORMS.items()}}
    for task in (quickstart, headers):
        found[task.__name__] = compared({name: task(name, form) for name, form in FORMS.items()})
        print(json.dumps(found), flush=True)
    options.result.write_text(json.dumps({**found, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
