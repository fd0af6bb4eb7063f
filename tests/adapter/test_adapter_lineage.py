"""Lineage: an adapter names the digests of those it was made from, and they are found wherever they lie."""

import json
import shutil

import torch

from lorica import adapter, durable
from lorica.adapter import lineage as lines
from lorica.adapter.lineage import Parent
from lorica.methods import LoRA
from tiny_bases import LLAMA, stir

TENSORS = "adapter_model.safetensors"


def made(folder, parent=None, **facts):
    base = LLAMA.build(torch.float32)
    attached = adapter.attach(base, LoRA(r=2)) if parent is None else adapter.load(base, parent)
    stir(attached.named_parameters())
    attached.save(folder, **facts)
    return folder


def test_an_adapter_that_was_continued_names_its_parent_by_the_digest_of_its_tensors(tmp_path):
    first = made(tmp_path / "first")
    second = made(tmp_path / "second", first)
    told = json.loads((second / "lorica.json").read_text())
    assert told["made"] == "continued"
    assert told["parents"] == [{"digest": durable.sha256(first / TENSORS), "source": str(first)}]


def test_an_adapter_of_others_is_a_parent_too(tmp_path):
    first = made(tmp_path / "first")
    (first / "lorica.json").unlink()
    second = made(tmp_path / "second", first)
    assert json.loads((second / "lorica.json").read_text())["parents"][0]["digest"] == durable.sha256(first / TENSORS)


def test_unchanged_weights_are_the_same_adapter_with_the_parents_it_had(tmp_path):
    second = made(tmp_path / "second", made(tmp_path / "first"))
    adapter.load(LLAMA.build(torch.float32), second).save(tmp_path / "copy")
    copied, original = (json.loads((tmp_path / name / "lorica.json").read_text()) for name in ("copy", "second"))
    assert (copied["made"], copied["parents"]) == (original["made"], original["parents"])
    assert copied["files"] == original["files"]


def test_inspect_draws_the_tree_and_finds_parents_that_were_moved(tmp_path):
    runs = tmp_path / "runs"
    first = made(runs / "first" / "adapter")
    second = made(runs / "second" / "adapter", first)
    third = made(runs / "third" / "adapter", second)
    first.rename(tmp_path / "kept")
    shutil.move(tmp_path / "kept", runs / "elsewhere" / "adapter")
    drawn = str(adapter.inspect(third)).splitlines()[-3:]
    assert [line.split()[-1] for line in drawn] == ["continued", "continued", "trained"]
    assert drawn[1].startswith("  └─ ")
    assert drawn[2].startswith("     └─ ")
    assert "elsewhere" in drawn[2]
    tree = adapter.inspect(third).to_dict()["lineage"]
    assert tree["parents"][0]["parents"][0]["digest"] == durable.sha256(runs / "elsewhere" / "adapter" / TENSORS)


def test_a_parent_that_is_not_here_is_named_and_another_in_its_place_is_not_taken_for_it(tmp_path):
    first = made(tmp_path / "a" / "first")
    second = made(tmp_path / "b" / "second", first)
    made(tmp_path / "a" / "again", first).replace(tmp_path / "a" / "kept")
    shutil.rmtree(first)
    (tmp_path / "a" / "kept").rename(first)
    (parent,) = adapter.Lineage.of(second).parents
    assert (parent.name, parent.found) == (str(first), False)


def test_adapters_that_say_they_are_each_others_parents_end_the_tree(tmp_path):
    first = made(tmp_path / "first")
    second = made(tmp_path / "second", first)
    for one, other in ((first, second), (second, first)):
        told = json.loads((one / "lorica.json").read_text())
        told["parents"] = [{"digest": durable.sha256(other / TENSORS), "source": str(other)}]
        (one / "lorica.json").write_text(json.dumps(told))
    drawn = str(adapter.Lineage.of(first)).splitlines()
    assert len(drawn) == 3
    assert drawn[2].endswith("not found here")


def test_several_parents_are_recorded_through_one_face(tmp_path):
    folders = [made(tmp_path / name) for name in ("one", "two")]
    parents = [Parent(durable.sha256(folder / TENSORS), str(folder)) for folder in folders]
    both = made(tmp_path / "both", **lines.facts("combined", parents))
    drawn = str(adapter.Lineage.of(both)).splitlines()
    assert drawn[0].endswith("combined")
    assert drawn[1].startswith("├─ ")
    assert drawn[2].startswith("└─ ")


def test_a_neighbour_with_a_broken_record_is_passed_over(tmp_path):
    second = made(tmp_path / "second", made(tmp_path / "first"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "lorica.json").write_text("{")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert adapter.Lineage.of(second).parents[0].found
