"""A run that keeps what it can elsewhere, killed and resumed without: the same bits as one that keeps nothing there."""

import shutil
from pathlib import Path

import pytest

import lorica
from lorica.cli.entry import run as command

ELSEWHERE = [
    "--set", "train.page_state=2000",
    "--set", "train.offload_activations=true",
    "--set", "train.gradient_checkpointing=true",
    "--set", "model.host_layers=1",
]  # fmt: skip


def test_what_was_kept_elsewhere_goes_on_here_and_the_other_way(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert command(["train", "count.yaml", "--set", "output=runs/here"]) == 0
    whole = Path("runs/here/adapter/adapter_model.safetensors").read_bytes()
    for first, second in ((ELSEWHERE, []), ([], ELSEWHERE)):
        shutil.rmtree("runs/moved", ignore_errors=True)
        assert command(["train", "count.yaml", "--set", "output=runs/moved", *first]) == 0
        assert Path("runs/moved/adapter/adapter_model.safetensors").read_bytes() == whole
        shutil.rmtree(sorted(Path("runs/moved/checkpoints").iterdir())[-1])
        shutil.rmtree("runs/moved/adapter")
        assert command(["train", "count.yaml", "--set", "output=runs/moved", *second, "--resume"]) == 0
        assert Path("runs/moved/adapter/adapter_model.safetensors").read_bytes() == whole
    run = lorica.train(lorica.Recipe.load("count.yaml", [*ELSEWHERE[1::2], "output=runs/again"]))
    assert run.pages is not None
    assert run.pages["in"] > 0


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("train.page_state=few", "train.page_state: .*'few' is no size; write it as 500MB"),
        ("train.page_state=12XB", "train.page_state: .*no size"),
        ("train.page_state=0", "train.page_state: .*greater than or equal to 1"),
        ("model.host_layers=-1", "model.host_layers"),
        ("model.host_layers=most", "model.host_layers"),
        ("train={gradient_checkpointing: false, offload_activations: true}", "offload_activations moves the inputs"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, setting: str, told: str
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(lorica.LoricaError, match=told):
        lorica.Recipe.load("count.yaml", [setting])
