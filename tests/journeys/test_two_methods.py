"""A recipe with a list of methods trains, verifies, and is loaded again; its folder says so."""

import json
import os
from pathlib import Path

import pytest

import lorica

METHODS = {
    "prefix": "[{name: lora, r: 4, alpha: 12}, {name: prefix, length: 3, hidden: 8}]",
    "bottleneck": "[{name: lora, r: 4, alpha: 12}, {name: bottleneck, size: 4}]",
}


@pytest.mark.parametrize("second", METHODS)
def test_a_recipe_with_two_methods_trains_and_comes_back(place: Path, second: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    recipe = lorica.Recipe.load("count.yaml", [f"method={METHODS[second]}", f"output=runs/{second}"])
    run = lorica.train(recipe)
    losses = [line["loss"] for line in run.history if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    folder = place / "runs" / second / "adapter"
    told = json.loads((folder / "adapter_config.json").read_text())
    assert [entry["name"] for entry in told["methods"]] == ["lora", second]
    proof = lorica.verify(folder)
    assert proof.ok, proof
    inspected = lorica.inspect(folder)
    assert inspected.methods == ("lora", second)
    scored = lorica.evaluate(folder, "eval.jsonl").to_dict()["loss"]
    assert scored < lorica.evaluate(folder, "eval.jsonl", base=True).to_dict()["loss"]
    assert os.path.getsize(folder / "adapter_model.safetensors") < 100_000
