"""A run on a base in four bits: trained, resumed, verified, scored, generated from, merged either way."""

import json
import shutil
from pathlib import Path

import pytest

import lorica
from lorica.models import quantisation_of

QUANTISED = ["model.source=embedded", "model.quantize=nf4", "model.double_quant=true"]


@pytest.fixture
def trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    shutil.rmtree(place / "runs" / "four", ignore_errors=True)
    recipe = lorica.Recipe.load("count.yaml", [*QUANTISED, "output=runs/four"])
    run = lorica.train(recipe)
    losses = [line["loss"] for line in run.history if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    return place / "runs" / "four" / "adapter"


def test_an_adapter_on_four_bits_comes_back_on_four_bits(trained: Path) -> None:
    facts = json.loads((trained / "lorica.json").read_text())["base"]["load"]
    assert facts == {"quantize": "nf4", "double_quant": True}
    assert "load_base(\"embedded\", quantize='nf4', double_quant=True)" in (trained / "README.md").read_text()
    proof = lorica.verify(trained)
    assert proof.ok, proof
    assert "equal to the bit" in str(proof)
    scored, bare = lorica.evaluate(trained, "eval.jsonl"), lorica.evaluate(trained, "eval.jsonl", base=True)
    assert scored.to_dict()["loss"] < bare.to_dict()["loss"]


def test_a_merge_is_into_what_the_adapter_saw_unless_asked_otherwise(trained: Path, tmp_path: Path) -> None:
    usual = lorica.merge(trained, tmp_path / "usual")
    original = lorica.merge(trained, tmp_path / "original", onto="original")
    assert usual.outputs is not None
    assert original.outputs is not None
    assert usual.outputs.within_rounding
    assert usual.outputs.deviation < original.outputs.deviation, "the original weights are not what it was trained on"
    wide = lorica.merge(trained, tmp_path / "wide", dtype="float32")
    assert wide.outputs is not None
    assert wide.outputs.within_rounding
    merged = lorica.load_base(tmp_path / "usual")
    assert quantisation_of(merged) is None
    stored = lorica.load_base("embedded")
    head = [dict(model.named_parameters())["model.embed_tokens.weight"] for model in (merged, stored)]
    assert (head[0] == head[1]).all()


def test_a_resumed_run_goes_on_in_the_same_bits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    settings = [*QUANTISED, "train.checkpoint_every=2"]
    whole = lorica.train(lorica.Recipe.load("count.yaml", [*settings, "output=runs/whole"]))
    cut = lorica.Recipe.load("count.yaml", [*settings, "output=runs/cut"])
    lorica.train(cut)
    newest = sorted((place / "runs/cut/checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    shutil.rmtree(place / "runs/cut/adapter")
    again = lorica.train(cut, resume=True)
    assert [line["loss"] for line in again.history if "loss" in line] == [
        line["loss"] for line in whole.history if "loss" in line
    ]


def test_a_run_is_not_resumed_on_a_base_stored_otherwise(trained: Path) -> None:
    shutil.rmtree(trained)
    other = lorica.Recipe.load("count.yaml", ["model.source=embedded", "output=runs/four"])
    with pytest.raises(lorica.LoricaError, match=r"model\.quantize"):
        lorica.train(other, resume=True)
