"""combine, resize and inspect of two, as a user types them, on adapters that were trained on a tiny Llama."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import lorica
from lorica.adapter import read
from lorica.adapter.combine import HOWS
from lorica.cli.entry import run
from lorica.cli.make import How
from tiny_bases import stir

TENSORS = "adapter_model.safetensors"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
UP = [{"prompt": f"after {WORDS[n]}: ", "completion": WORDS[n + 1]} for n in range(10)]
DOWN = [{"prompt": f"before {WORDS[n + 1]}: ", "completion": WORDS[n]} for n in range(10)]


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """`up` and `down`, trained on `base`; their rows beside them; `theirs` is `up` as others would have written it."""
    for name, rows, method in (
        ("up", UP, lorica.LoRA(r=6, alpha=12)),
        ("down", DOWN, lorica.LoRA(r=3, alpha=9, rslora=True, target_modules="attention")),
    ):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        attached = lorica.attach(lorica.load_base(str(place / "base")), method)
        lorica.fit(attached, train=rows, steps=25, rows_per_step=10, learning_rate=1e-2, output=place / "taught" / name)
        shutil.copytree(place / "taught" / name / "adapter", place / name)
    shutil.copytree(place / "up", place / "theirs")
    (place / "theirs" / "lorica.json").unlink()
    return place


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("made", "small"):
        shutil.rmtree(folder / name, ignore_errors=True)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    def said(*words: str) -> Any:
        status = run([*words, "--json"])
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out)

    return said


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    def refused(*words: str) -> tuple[int, list[str]]:
        status = run(words)
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return status, [line for line in err.splitlines() if line.startswith("error: ")]

    return refused


def loss(adapter: str, rows: str) -> float:
    return lorica.evaluate(adapter, rows, model="base").metrics["loss"]


def test_the_words_of_the_command_line_are_those_of_the_library() -> None:
    assert [how.value for how in How] == list(HOWS)


def test_an_exact_blend_is_proven_on_the_base_and_knows_a_part_of_both(said) -> None:
    made = said("combine", "up=0.5", "down=0.5", "--model", "base", "--out", "made")
    assert (made["how"], made["proof"], made["unproven"]) == ("exact", True, None)
    assert made["error"] < 1e-7
    assert [each["weight"] for each in made["adapters"]] == [0.5, 0.5]
    assert said("verify", "made", "--model", "base")["ok"] is True
    base = lorica.evaluate(None, "up.jsonl", model="base").metrics["loss"]
    assert loss("made", "up.jsonl") < base
    assert loss("up", "up.jsonl") < loss("made", "up.jsonl")


def test_a_blend_of_one_half_each_answers_as_the_bank_does(said) -> None:
    said("combine", "up=0.5", "down=0.5", "--model", "base", "--out", "made")
    bank = lorica.Bank(lorica.load_base("base"))
    bank.add("up", "up")
    bank.add("down", "down")
    ids = bank.model.tokenizer("after two: ", return_tensors="pt")["input_ids"]
    with torch.no_grad(), bank.use({"up": 0.5, "down": 0.5}) as model:
        expected = model(input_ids=ids).logits
    with torch.no_grad():
        found = lorica.load(lorica.load_base("base"), "made")(input_ids=ids).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("how", [how for how in HOWS if how != "exact"])
def test_every_other_way_has_the_rank_that_is_asked_for_and_says_how_far_it_is(how: str, said) -> None:
    pruned = ("--density", "0.6", "--seed", "3") if how not in ("svd",) else ()
    made = said("combine", "up=0.7", "down=0.3", "--how", how, "--r", "4", *pruned, "--model", "base", "--out", "made")
    assert 1e-4 < made["error"] < 2
    assert max(site["rank"] for site in made["sites"]) == 4
    assert 0 < made["energy"] < 1
    assert said("verify", "made", "--model", "base")["ok"] is True
    assert json.loads(Path("made/lorica.json").read_text())["combined"]["error"] == made["error"]


def test_where_the_base_is_not_at_hand_nothing_is_recorded_and_the_folder_says_so(said, capsys) -> None:
    made = said("combine", "up=1", "down=1", "--out", "made")
    assert made["proof"] is False
    assert "may mean another thing here; give --model" in made["unproven"]
    assert json.loads(Path("made/lorica.json").read_text())["proof"] == {"unprobed": made["unproven"]}
    found = said("verify", "made", "--model", "base")
    assert found["ok"] is True
    assert "no outputs were recorded" in next(c["detail"] for c in found["checks"] if c["name"] == "proof")
    assert run(["combine", "up=1", "--out", "small"]) == 0
    assert "no outputs recorded" in capsys.readouterr().out


def test_the_base_of_ones_own_run_and_the_embedded_one_are_found_without_being_named(said, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        attached = lorica.attach(
            lorica.load_base("embedded"), lorica.LoRA(r=2, alpha=5, target_modules="minimal"), seed=seed
        )
        stir(((f"{name}{key}", p) for key, p in attached.named_parameters()), std=0.02)
        attached.save(tmp_path / name)
    made = said("combine", f"{tmp_path / 'one'}=0.5", f"{tmp_path / 'two'}=0.5", "--out", "made")
    assert made["proof"] is True
    assert said("verify", "made")["ok"] is True


def test_a_blend_with_an_adapter_of_others_is_made(said) -> None:
    made = said("combine", "theirs=0.5", "down=0.5", "--model", "base", "--out", "made")
    assert made["proof"] is True
    digests = [each["digest"] for each in made["adapters"]]
    assert digests == [read(name).digest for name in ("theirs", "down")]


def test_what_was_made_can_be_trained_on_and_names_its_parents(said) -> None:
    said("combine", "up=0.5", "down=0.5", "--how", "svd", "--r", "4", "--model", "base", "--out", "made")
    attached = lorica.load(lorica.load_base("base"), "made")
    lorica.fit(attached, train=DOWN, steps=3, rows_per_step=5, learning_rate=1e-3, output="taught/on")
    drawn = str(lorica.inspect("taught/on/adapter")).splitlines()
    assert [line.split()[-1] for line in drawn[-4:]][0:2] == ["continued", "combined"]
    assert "0.5 x" in drawn[-1]
    shutil.rmtree("taught/on")


def test_all_words_that_are_no_weights_are_told_at_once(refused) -> None:
    status, lines = refused("combine", "up", "down=much", "up=0.3", "up=0.4", "--out", "made")
    assert status == 2
    assert len(lines) == 3
    assert "write up=0.5" in lines[0]
    assert "comes twice" in lines[2]


def test_a_base_that_is_not_the_adapters_is_refused_and_nothing_is_written(refused, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree("base", "changed", dirs_exist_ok=True)
    tensors = load_file("changed/model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, "changed/model.safetensors", {"format": "pt"})
    status, lines = refused("combine", "up=1", "down=1", "--model", "changed", "--out", "made")
    assert status == 1
    assert "another base" in lines[0]
    assert not Path("made").exists()


def test_an_adapter_is_not_overwritten(refused) -> None:
    status, lines = refused("combine", "up=1", "--out", "down")
    assert (status, len(lines)) == (2, 1)
    assert "is there already" in lines[0]
    assert refused("resize", "up", "--r", "2", "--out", "down")[0] == 2


def test_a_resized_adapter_is_smaller_proven_and_says_what_it_lost(said) -> None:
    made = said(
        "resize", "up", "--r", "3", "--model", "base", "--out", "small", "--data", "up.jsonl", "--tolerance", "2"
    )
    assert {site["rank"] for site in made["sites"]} == {3}
    assert all(site["before"] == 6 and len(site["singular_values"]) == 6 for site in made["sites"])
    assert made["loss"]["before"] == pytest.approx(loss("up", "up.jsonl"), abs=1e-6)
    assert made["loss"]["after"] == pytest.approx(loss("small", "up.jsonl"), abs=1e-6)
    assert Path("small", TENSORS).stat().st_size < 0.6 * Path("up", TENSORS).stat().st_size
    assert said("verify", "small", "--model", "base")["ok"] is True
    told = json.loads(Path("small/lorica.json").read_text())
    assert told["resized"]["loss"] == made["loss"]
    assert told["data"] == json.loads(Path("up/lorica.json").read_text())["data"]


def test_the_gate_refuses_what_lost_too_much_and_nothing_is_written(refused) -> None:
    words = ("resize", "up", "--r", "1", "--model", "base", "--out", "small", "--data", "up.jsonl")
    status, lines = refused(*words, "--tolerance", "0.001")
    assert status == 1
    assert "nothing was written" in lines[0]
    assert not Path("small").exists()
    assert run([*words, "--tolerance", "100"]) == 0


def test_resizing_by_energy_keeps_it_at_every_site(said) -> None:
    made = said("resize", "up", "--energy", "0.95", "--out", "small")
    assert all(site["energy"] >= 0.95 for site in made["sites"])
    assert min(site["rank"] for site in made["sites"]) < 6


def test_scoring_without_a_base_says_what_to_type(refused) -> None:
    status, lines = refused("resize", "up", "--r", "2", "--out", "small", "--data", "up.jsonl")
    assert status == 2
    assert "give --model" in lines[0]


def test_inspect_of_two_shows_what_they_share(said, capsys) -> None:
    found = said("inspect", "up", "down")
    assert len(found["sites"]) == 8
    assert len(found["only_first"]) == 6
    assert -1 < found["cosine"] < 1
    assert all(0 <= site["inputs"]["phi"] <= 1 for site in found["sites"])
    assert said("inspect", "up", "up")["cosine"] == pytest.approx(1)
    assert run(["inspect", "up", "down"]) == 0
    assert "phi of inputs" in capsys.readouterr().out


def test_inspect_of_one_shows_its_spectra(said) -> None:
    sites = said("inspect", "up")["sites"]
    assert all(len(site["singular_values"]) == 6 and 1 <= site["effective_rank"] <= 6 for site in sites)
