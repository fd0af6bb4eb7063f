"""Kernels in C are never required: where none can be built everything runs on torch, and the reason is told."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
import torch

from lorica.kernels import rms_norm
from lorica.kernels.choice import chosen, is_native
from lorica.kernels.native import build, compiled, library
from lorica.kernels.rms_norm import reference

GCC = which("gcc")


@pytest.fixture(autouse=True)
def a_processor_that_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With an empty cache, and no compiler but those a test makes."""
    monkeypatch.delenv(compiled.OFF, raising=False)
    monkeypatch.delenv(build.WIDEST, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "processor_flags", lambda: frozenset(build.NEEDED))
    monkeypatch.setattr(build, "_is_loaded", lambda name: True)
    library.cache_clear()
    yield
    library.cache_clear()


def compiler(folder: Path, version: str, then: str) -> None:
    path = folder / "gcc"
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version}"; exit 0; fi\n{then}\n')
    path.chmod(0o700)


def why() -> str:
    """Of the choice of torch, which answers as the definition does."""
    x, weight = torch.ones(2, 8, dtype=torch.bfloat16), torch.full((8,), 3, dtype=torch.bfloat16)
    assert not is_native("rms_norm", x, weight)
    assert torch.equal(rms_norm(x, weight, 0.0), reference(x, weight, 0.0))
    choice = chosen("rms_norm", x)
    assert choice.path == "torch"
    assert library().name == "none"
    return choice.why


def test_without_a_compiler() -> None:
    assert why() == "no C compiler: install gcc"


def test_with_a_compiler_that_fails(tmp_path: Path) -> None:
    compiler(tmp_path, compiled.GNU, "echo 'rms_norm.c:1: no such instruction' >&2; exit 1")
    assert why() == "gcc failed: rms_norm.c:1: no such instruction"
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_with_a_compiler_that_fails_without_a_word(tmp_path: Path) -> None:
    compiler(tmp_path, compiled.GNU, "exit 1")
    assert "exit status 1" in why()


def test_with_one_that_makes_what_cannot_be_loaded(tmp_path: Path) -> None:
    compiler(tmp_path, compiled.GNU, "exit 0")
    assert why().startswith("gcc failed: ")


def test_with_clang_under_the_name_of_gcc(tmp_path: Path) -> None:
    compiler(tmp_path, "clang version 18", "exit 0")
    assert why() == "gcc is not GCC: install gcc"


def test_on_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "processor_flags", lambda: frozenset(build.NEEDED[:-1]))
    assert why() == f"this processor has no {build.NEEDED[-1]}"


def test_beside_another_runtime_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_is_loaded", lambda name: False)
    assert build.OPENMP in why()


def test_no_wider_than_the_products_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AVX2 there are none of ours; what else is left out the compiler is told; a word unknown to oneDNN is
    none."""
    monkeypatch.setattr(
        build, "processor_flags", lambda: frozenset({*build.NEEDED, *build.TILES, "avx512f", "avx512_bf16"})
    )
    monkeypatch.setenv(build.WIDEST, "AVX")
    assert why() == f"{build.WIDEST}=AVX leaves out avx2, fma"
    tiles = {"-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"}
    for widest, without in (
        ("avx512_core_bf16", tiles),
        ("AVX512_CORE_VNNI", {*tiles, "-mno-avx512bf16"}),
        ("AVX2_VNNI", {*tiles, "-mno-avx512bf16", "-mno-avx512f"}),
        ("AVX512_CORE_AMX", set()),
        ("AVX1024", set()),
    ):
        library.cache_clear()
        monkeypatch.setenv(build.WIDEST, widest)
        compiler(tmp_path, compiled.GNU, f'echo "$@" >{tmp_path}/arguments; exit 1')
        assert why().startswith("gcc failed")
        said = (tmp_path / "arguments").read_text().split()
        assert {word for word in said if word.startswith("-mno")} == without


@pytest.mark.skipif(GCC is None, reason="no gcc")
@pytest.mark.parametrize("processor", ["haswell", "sapphirerapids"])
def test_nothing_is_warned_of(processor: str) -> None:
    command = [str(GCC), *build.FLAGS, f"-march={processor}", "-Wall", "-Werror", "-fsyntax-only"]
    ran = subprocess.run([*command, *map(str, build.FOLDER.glob("*.c"))], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_where_pairs_are_slow_products_without_tiles_are_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def widened(vendor: str, *names: str) -> bool:
        monkeypatch.setattr(build, "processor_flags", lambda: frozenset({*build.NEEDED, *names}))
        monkeypatch.setattr(build, "_told", lambda what: [vendor])
        return "-DWIDENED" in build.sources([]).flags

    assert widened(build.SLOW_PAIRS, "avx512_bf16")
    assert not widened(build.SLOW_PAIRS, "avx512_bf16", *build.TILES)
    assert not widened("AuthenticAMD", "avx512_bf16")
    monkeypatch.setenv(build.WIDEST, "AVX512_CORE_BF16")
    assert widened(build.SLOW_PAIRS, "avx512_bf16", *build.TILES)


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.OFF, "0")
    assert why() == "LORICA_NATIVE=0"
