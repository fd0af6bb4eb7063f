"""Digests of bases are remembered by the identity of their files, and a cache that lies is never believed."""

import json
import os
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorica.models import digests
from lorica.models.fingerprint import fingerprint_of_folder, whole_digest


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"a": torch.arange(12.0), "b": torch.ones(3)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    fingerprint = import_module("lorica.models.fingerprint")
    kinds: list[str] = []
    for name in ("_sampled", "_whole"):
        work = getattr(fingerprint, name)
        monkeypatch.setattr(
            fingerprint, name, lambda stored, name=name, work=work: (kinds.append(name), work(stored))[1]
        )
    return kinds


def entry(base: Path) -> Path:
    (found,) = digests.folder().glob("*.json")
    return found


def test_a_digest_is_computed_once_and_again_when_the_file_changes(base: Path, computed: list[str]) -> None:
    first = fingerprint_of_folder(base), whole_digest(base)
    assert (fingerprint_of_folder(base), whole_digest(base)) == first
    assert computed == ["_sampled", "_whole"]
    save_file({"a": torch.arange(12.0), "b": torch.zeros(3)}, base / "model.safetensors")
    assert fingerprint_of_folder(base) != first[0]
    assert whole_digest(base) != first[1]


def test_setting_the_time_back_does_not_bring_an_old_digest_back(base: Path) -> None:
    first, before = fingerprint_of_folder(base), (base / "model.safetensors").stat()
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80\x40")
    os.utime(base / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprint_of_folder(base) != first


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_text("")


def lie(path: Path) -> None:
    kept = json.loads(path.read_text())
    kept["digests"]["sampled 1"] = "0" * 64
    path.write_text(json.dumps(kept))


def another_shape(path: Path) -> None:
    path.write_text('{"files": 1, "digests": [], "check": null}')


def a_list(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize("damage", [lose, empty, lie, another_shape, a_list])
def test_a_cache_that_is_lost_or_damaged_costs_time_alone(damage, base: Path, computed: list[str]) -> None:
    first = fingerprint_of_folder(base)
    damage(entry(base))
    assert fingerprint_of_folder(base) == first
    assert computed == ["_sampled", "_sampled"]


def test_a_cache_that_cannot_be_written_stops_nobody(base: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder is wanted")
    assert fingerprint_of_folder(base) == fingerprint_of_folder(base)


def test_a_file_that_has_just_changed_is_not_remembered(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", 60 * 10**9)
    fingerprint_of_folder(base)
    assert not digests.folder().exists()


def test_every_byte_of_a_large_base_is_hashed_only_when_asked_for(base: Path) -> None:
    assert whole_digest(base, at_most=16) is None
    asked = whole_digest(base)
    assert whole_digest(base, at_most=16) == asked


def test_the_whole_digest_does_not_depend_on_shards(base: Path) -> None:
    one = whole_digest(base)
    for number, name in enumerate("ab", 1):
        tensor = {"a": torch.arange(12.0), "b": torch.ones(3)}[name]
        save_file({name: tensor}, base / f"model-{number}.safetensors")
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert whole_digest(base) == one
