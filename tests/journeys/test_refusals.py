"""What must never pass for an adapter that works: one without effect, and one for another base, by every road."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorica
from lorica.cli.entry import run
from tiny_bases import stir

ROWS = [{"prompt": "after two: ", "completion": "three"}]


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """`trained`, `untrained` and `theirs` on `base`; `changed` is that base with one norm scaled."""
    for name, std in (("trained", 0.02), ("untrained", 0.0)):
        attached = lorica.attach(lorica.load_base(str(place / "base")), lorica.LoRA(r=4, alpha=12))
        if std:
            stir(attached.named_parameters(), std)
        attached.save(place / name)
    shutil.copytree(place / "trained", place / "theirs", dirs_exist_ok=True)
    (place / "theirs" / "lorica.json").unlink()
    shutil.copytree(place / "base", place / "changed", dirs_exist_ok=True)
    tensors = load_file(place / "changed" / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, place / "changed" / "model.safetensors", {"format": "pt"})
    return place


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def verified(adapter: str, base: str, **accepted: bool) -> None:
    found = lorica.verify(adapter, model=base, **accepted)
    if not found:
        raise lorica.AdapterError(str(found))


Road = Callable[..., Any]
ROADS: dict[str, Road] = {
    "load": lambda adapter, base, **accepted: lorica.load(lorica.load_base(base), adapter, **accepted),
    "bank": lambda adapter, base, **accepted: lorica.Bank(lorica.load_base(base)).add("a", adapter, **accepted),
    "verify": verified,
    "merge": lambda adapter, base, **accepted: lorica.merge(adapter, "merged", model=base, **accepted),
    "generate": lambda adapter, base, **accepted: lorica.generate(adapter, "a", model=base, max_tokens=2, **accepted),
    "eval": lambda adapter, base, **accepted: lorica.evaluate(adapter, ROWS, model=base, **accepted),
}
COMMANDS = {
    "verify": ("verify",),
    "merge": ("merge", "--out", "merged"),
    "generate": ("generate", "--prompt", "a", "--max-tokens", "2"),
    "eval": ("eval", "--data", "eval.jsonl"),
}


@pytest.fixture(autouse=True)
def without_merged(folder: Path) -> None:
    shutil.rmtree(folder / "merged", ignore_errors=True)


@pytest.mark.parametrize("road", ROADS)
def test_an_adapter_without_effect_is_refused_unless_the_caller_says_untrained(road: str) -> None:
    ROADS[road]("trained", "base")
    shutil.rmtree("merged", ignore_errors=True)
    with pytest.raises(lorica.AdapterError, match="changes nothing"):
        ROADS[road]("untrained", "base")
    assert not Path("merged").exists()
    ROADS[road]("untrained", "base", untrained=True)


@pytest.mark.parametrize("road", ROADS)
def test_an_adapter_for_another_base_is_refused_unless_the_caller_says_other_base(road: str) -> None:
    with pytest.raises(lorica.AdapterError, match=r"fingerprint \w+, and \w+ was recorded"):
        ROADS[road]("trained", "changed")
    assert not Path("merged").exists()
    if road != "verify":  # which proves, and proves nothing of another base
        ROADS[road]("trained", "changed", other_base=True)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("adapter", "base", "told"),
    [("untrained", "base", "changes nothing"), ("trained", "changed", "was recorded")],
    ids=["without effect", "another base"],
)
def test_the_commands_refuse_them_alike_with_exit_status_1(
    command: str, adapter: str, base: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = COMMANDS[command]
    assert run([name, adapter, "--model", base, *options]) == 1
    out, err = capsys.readouterr()
    assert told in out + err
    assert not Path("merged").exists()


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_the_commands_accept_them_when_told_to(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *options = COMMANDS[command]
    assert run([name, "untrained", "--model", "base", "--untrained", *options]) == 0
    assert run([name, "trained", "--model", "changed", "--other-base", *options]) == 0
    assert "unverified" not in capsys.readouterr().err


def test_an_adapter_of_others_is_used_and_called_unverified(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "theirs", "--model", "base", "--prompt", "a", "--max-tokens", "2"]) == 0
    assert "theirs: unverified" in capsys.readouterr().err
    assert run(["verify", "theirs", "--model", "base", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["status"]) == (False, "unverified")
    assert run(["inspect", "theirs"]) == 0
    assert "unverified" in capsys.readouterr().out


def test_another_process_reproduces_the_proof_to_the_bit(folder: Path) -> None:
    command = [sys.executable, "-m", "lorica", "verify", "trained", "--model", "base", "--full", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    details = {check["name"]: check["detail"] for check in found["checks"]}
    assert details["proof"].startswith("equal to the bit, under the same numerics")
    assert details.keys() >= {"files", "base", "base, every byte", "tokenizer", "effect", "proof"}
    assert all(check.keys() == {"name", "ok", "detail"} for check in found["checks"])


def test_a_merge_says_how_far_the_outputs_moved_and_names_the_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", "trained", "--model", "base", "--out", "merged", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 <= told["largest_difference"] <= told["outputs"]["allowed"] < 1e-3 < told["outputs"]["effect"]
    record = json.loads(Path("merged/lorica.json").read_text())
    digest = json.loads(Path("trained/lorica.json").read_text())["files"]["adapter_model.safetensors"]["sha256"]
    assert (record["made"], record["parents"]) == ("merged", [{"digest": digest, "source": "trained"}])


def test_a_merge_that_goes_wrong_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda self, W: W + 1.5 * self.scale * self.B @ self.A  # noqa: E731
    monkeypatch.setattr("lorica.methods.lora.LoRALinear.merged", wrong)
    with pytest.raises(lorica.AdapterError, match="rounding to float32 explains"):
        lorica.merge("trained", "merged", model="base")
    assert not Path("merged").exists()


def test_a_byte_between_the_sampled_blocks_is_seen_by_the_full_check_alone(folder: Path) -> None:
    """The fingerprint of a large tensor reads 16 blocks of it."""
    from lorica.models import digests
    from lorica.models.fingerprint import fingerprint_of_folder, whole_digest

    place = folder / "large"
    place.mkdir()
    tensor = torch.zeros(1 << 18)
    save_file({"w": tensor}, place / "model.safetensors")
    before = fingerprint_of_folder(place), whole_digest(place)
    tensor[5000] = 1
    save_file({"w": tensor}, place / "model.safetensors")
    assert digests.recalled("whole 1", [place / "model.safetensors"]) is None
    assert fingerprint_of_folder(place) == before[0]
    assert whole_digest(place) != before[1]


def test_training_goes_on_from_an_adapter_and_names_it(folder: Path) -> None:
    attached = lorica.load(lorica.load_base("base"), "trained")
    lorica.fit(attached, train=ROWS, steps=2, rows_per_step=1, learning_rate=1e-2, output="runs/continued")
    drawn = str(lorica.inspect("runs/continued/adapter")).splitlines()
    assert drawn[-2].endswith("continued")
    assert "trained" in drawn[-1]
    assert lorica.verify("runs/continued/adapter", model="base").ok
