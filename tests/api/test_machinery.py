"""`lorica doctor`: the machine, the path of each kernel, and what is missed."""

import ctypes
import json
import tomllib
from pathlib import Path

import pytest
import torch

from lorica import budget
from lorica.api import machinery
from lorica.cli.entry import run
from lorica.kernels.choice import OPS
from lorica.kernels.native import library
from lorica.kernels.native.build import Library

ROOT = Path(__file__).parents[2]


def test_doctor_says_speed_settings_and_the_path_of_each_kernel(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    assert run(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["products_gflops"]["float32"] > 0
    assert said["settings"]["KMP_BLOCKTIME"] == "7"
    assert list(said["kernels"]) == list(OPS)
    found = "torch" if library().lacking else "native"
    assert {op for op, paths in said["kernels"].items() if paths["cpu"]["path"] == found} >= {
        op for op, rule in OPS.items() if rule.native
    }
    assert all(choice["why"] for paths in said["kernels"].values() for choice in paths.values())
    assert {"device", "python", "threads", "bfloat16", "free_disk_bytes", "versions"} <= set(said)


def test_people_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machinery, "_products", lambda: {"float32": 1234.5})
    monkeypatch.setattr(machinery, "_version", lambda name: None if name == "sacrebleu" else "1.0")
    text = str(machinery.doctor())
    assert "1,234 GFLOP/s in float32" in text
    assert "without sacrebleu: pip install 'lorica[texts]'" in text
    assert all(f"\n{op} " in text for op in OPS)


@pytest.mark.parametrize(
    ("lacking", "said"), [(None, "bfloat16     no; kernels in C widen it to float32"), ("no gcc", "bfloat16     no")]
)
def test_bfloat16_where_no_instruction_takes_it(
    lacking: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machinery, "_computes_bfloat16", lambda: False)
    monkeypatch.setattr(
        machinery, "library", lambda: Library(None if lacking else ctypes.CDLL(None), lacking or "", "")
    )
    monkeypatch.setattr(budget, "product_gflops", lambda dtype, device: 1.0)
    assert said in str(machinery.doctor()).splitlines()


def test_the_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: tuple(line.partition(">")[0] for line in lines) for extra, lines in declared.items()}
    assert {extra: names[extra] for extra in names if extra != "dev"} == machinery.EXTRAS


@pytest.mark.parametrize(
    ("text", "word"), [("always [madvise] never\n", "madvise"), ("[always] madvise never\n", "always"), ("", None)]
)
def test_huge_pages_are_the_word_in_brackets(
    text: str, word: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "enabled"
    path.write_text(text)
    monkeypatch.setattr(machinery, "HUGE_PAGES", path)
    assert machinery._huge_pages() == word
    monkeypatch.setattr(machinery, "HUGE_PAGES", tmp_path / "none")
    assert machinery._huge_pages() is None


def test_a_rate_is_operations_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 n^3 in a millisecond each: the largest size that would not take too long has the highest rate."""
    from lorica.budget import rate

    monkeypatch.setattr(rate, "_least_seconds", lambda size, dtype, device: 1e-3)
    assert budget.product_gflops(torch.float32) == 2 * 2048**3 / 1e-3 / 1e9
    monkeypatch.setattr(rate, "_least_seconds", lambda size, dtype, device: 0.1)
    assert budget.product_gflops(torch.float32) == 2 * 512**3 / 0.1 / 1e9
