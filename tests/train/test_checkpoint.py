"""A run always has a checkpoint that verifies, from the first one on, and resumes from the newest that does."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from crashes import DISKS, crashes, faults
from lorica import durable
from lorica.errors import CheckpointError
from lorica.train import checkpoint

Groups = dict[str, dict[str, torch.Tensor]]


def tensors_at(step: int) -> Groups:
    """Values that differ at each step, in the dtypes that a run saves."""
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(3, 4, generator=generator)
    return {
        "adapter": {"q.A": weights, "q.B": weights.t(), "norm": weights.bfloat16(), "gain": torch.tensor(0.1 * step)},
        "optimizer": {
            "q.A.exp_avg": weights * 3,
            "q.A.step": torch.tensor(float(step)),
            "seen": torch.tensor(2**60 + step),
        },
        "generators": {"torch": generator.get_state(), "none": torch.zeros(0, dtype=torch.uint8)},
    }


def save(root: Path, step: int, keep: int = 2, protect: tuple[int, ...] = ()) -> Path:
    state = {"step": step, "epoch": 0.1 * step, "order": [step, 2**70], "text": "é\n"}
    return checkpoint.save(
        root, step, tensors_at(step), state, keep=keep, protect=protect, identity={"config": "c0ffee"}
    )


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*raw)


def assert_is_step(found: checkpoint.Checkpoint | None, step: int) -> None:
    assert found is not None
    assert (found.step, found.state["step"]) == (step, step)
    expected = tensors_at(step)
    assert found.tensors.keys() == expected.keys()
    for name, group in expected.items():
        assert found.tensors[name].keys() == group.keys()
        assert all(same_bits(found.tensors[name][key], value) for key, value in group.items())


def steps(root: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in checkpoint.folders(root)]


def test_what_was_saved_is_loaded_to_the_bit(tmp_path):
    folder = save(tmp_path, 12)
    assert folder == tmp_path / "step-00000012"
    found = checkpoint.load(folder)
    assert_is_step(found, 12)
    assert found.state == {"step": 12, "epoch": 0.1 * 12, "order": [12, 2**70], "text": "é\n"}
    assert found.drift() == []
    resumed = torch.Generator()
    resumed.set_state(found.tensors["generators"]["torch"])
    expected = torch.Generator()
    expected.set_state(tensors_at(12)["generators"]["torch"])
    assert torch.equal(torch.randn(9, generator=resumed), torch.randn(9, generator=expected))


def test_only_safetensors_and_json_are_written(tmp_path):
    names = sorted(path.name for path in save(tmp_path, 1).iterdir())
    assert names == [
        "MANIFEST.json", "adapter.safetensors", "generators.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip


def test_a_setting_that_is_compared_no_longer_stops_no_resume(tmp_path):
    checkpoint.save(tmp_path, 1, tensors_at(1), {}, keep=1, identity={"train.old": 1, "data": "a"})
    found, _ = checkpoint.newest(tmp_path)
    assert found.mismatches({"data": "a"}) == []
    assert found.mismatches({}) == ["data: saved with 'a', now None"]


def test_another_identity_and_another_environment_are_told(tmp_path):
    found = checkpoint.load(save(tmp_path, 1))
    assert found.mismatches({"config": "c0ffee"}) == []
    assert found.mismatches({"config": "beef", "data": (1, 2)}) == [
        "config: saved with 'c0ffee', now 'beef'",
        "data: saved with None, now [1, 2]",
    ]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert found.drift() == [f"threads: saved with {threads}, now {threads + 1}"]
    finally:
        torch.set_num_threads(threads)


def first_two(root: Path) -> None:
    save(root, 1)
    save(root, 2)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("two")
    first_two(root)
    return root


@pytest.mark.parametrize("disk", DISKS)
def test_a_crash_at_every_call_of_a_save_leaves_the_previous_or_the_new(tmp_path, two, disk):
    found = []
    for k, root in crashes(
        tmp_path, lambda root: shutil.copytree(two, root, dirs_exist_ok=True), lambda root: save(root, 3), disk
    ):
        newest, skipped = checkpoint.newest(root)
        assert newest is not None, k
        assert_is_step(newest, newest.step)
        assert skipped == [], k
        assert all(checkpoint.verifies(folder) for folder in checkpoint.folders(root)), k
        found.append(newest.step)
        assert not [path.name for path in root.iterdir() if not path.name.startswith("step-")], k
    assert set(found) == {2, 3}


@pytest.mark.parametrize("disk", DISKS)
def test_a_crash_while_a_damaged_checkpoint_of_the_same_step_is_replaced_loses_nothing(tmp_path, two, disk):
    def damaged(root: Path) -> None:
        shutil.copytree(two, root, dirs_exist_ok=True)
        (root / "step-00000002" / "state.json").write_text("{}")

    found = set()
    for k, root in crashes(tmp_path, damaged, lambda root: save(root, 2), disk):
        newest, skipped = checkpoint.newest(root)
        assert newest is not None, k
        assert_is_step(newest, newest.step)
        assert len(skipped) == 2 - newest.step, k
        found.add(newest.step)
    assert found == {1, 2}


def test_control_a_save_whose_fsyncs_are_in_vain_leaves_a_checkpoint_that_does_not_verify(tmp_path, two):
    states = crashes(
        tmp_path,
        lambda root: shutil.copytree(two, root, dirs_exist_ok=True),
        lambda root: save(root, 3, keep=1),
        "torn",
        syncs=False,
    )
    assert any(checkpoint.newest(root)[0] is None for _, root in states)


def test_control_a_checkpoint_written_in_place_is_found_half_there(tmp_path, two, monkeypatch):
    class InPlace(durable.Folder):
        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def in_place(target: Path, replace: bool = False) -> InPlace:
        return InPlace(Path(target), Path(target))

    monkeypatch.setattr(durable, "new_folder", in_place)
    states = crashes(
        tmp_path,
        lambda root: shutil.copytree(two, root, dirs_exist_ok=True),
        lambda root: save(root, 2),
        "killed",
    )
    assert any(checkpoint.newest(root)[1] for _, root in states)


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_failing_call_of_a_save_is_one_line_and_loses_nothing(tmp_path, two, code, forever):
    for k, root, error in faults(
        tmp_path,
        lambda root: shutil.copytree(two, root, dirs_exist_ok=True),
        lambda root: save(root, 3),
        code,
        forever,
    ):
        assert isinstance(error, CheckpointError), (k, error)
        assert "\n" not in str(error)
        assert str(root) in str(error)
        assert errno.errorcode[code] in str(error)
        newest, skipped = checkpoint.newest(root)
        assert newest is not None, k
        assert newest.step in (2, 3)
        assert_is_step(newest, newest.step)
        assert skipped == [], k


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, two, monkeypatch):
    monkeypatch.setattr(durable, "_free_bytes", lambda _: 100)
    with pytest.raises(CheckpointError, match=r"[\d,]+ bytes needed, 100 free; make room"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_bit_flips_all_over_every_file_are_found(tmp_path, two):
    original = two / "step-00000002"
    for path in sorted(original.iterdir()):
        folder = shutil.copytree(original, tmp_path / path.name / original.name)
        bits = 8 * path.stat().st_size
        stride = bits // (600 if path.name == checkpoint.MANIFEST else 100) | 1  # odd: every bit of a byte has its turn
        for bit in range(0, bits, stride):
            shutil.copyfile(path, folder / path.name)
            flip(folder / path.name, bit)
            assert not checkpoint.verifies(folder), (path.name, bit)
        shutil.copyfile(path, folder / path.name)
        assert checkpoint.verifies(folder)


def test_a_damaged_checkpoint_is_skipped_with_its_reason_and_the_one_before_is_taken(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step, keep=9)
    flip(tmp_path / "step-00000006" / "adapter.safetensors", 2000)
    (tmp_path / "step-00000005" / "state.json").unlink()
    (tmp_path / "step-00000004" / "MANIFEST.json").unlink()
    with (tmp_path / "step-00000003" / "optimizer.safetensors").open("ab") as file:
        file.write(b"\0")
    newest, skipped = checkpoint.newest(tmp_path)
    assert_is_step(newest, 2)
    assert [(path.name, reason) for path, reason in skipped] == [
        ("step-00000006", "adapter.safetensors does not have its recorded SHA-256"),
        ("step-00000005", "state.json is missing"),
        ("step-00000004", "has no MANIFEST.json, so it was never completed"),
        ("step-00000003", skipped[3][1]),
    ]
    assert skipped[3][1].startswith("optimizer.safetensors has ")


@pytest.mark.parametrize("name", ["MANIFEST.json", "optimizer.safetensors"])
def test_a_checkpoint_that_the_disk_does_not_give_is_an_error_and_not_passed_over(tmp_path, monkeypatch, name):
    """Damage is known once it is read; here nothing is known, and the run before it could be thrown away."""
    first_two(tmp_path)
    opened = Path.open

    def failing(path, *arguments, **options):
        if path == tmp_path / "step-00000002" / name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(CheckpointError, match=r"step-00000002.*\(EIO\).*try again, or remove .*step-00000002"):
        checkpoint.newest(tmp_path)


def test_a_checkpoint_under_another_step_or_of_another_schema_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    folder.rename(tmp_path / "step-00000009")
    newest, skipped = checkpoint.newest(tmp_path)
    assert newest is None
    assert skipped == [(tmp_path / "step-00000009", "MANIFEST.json is that of step 1")]
    folder = save(tmp_path / "schema", 1)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    (folder / "MANIFEST.json").write_text(json.dumps({**manifest, "schema": 2}))
    with pytest.raises(CheckpointError, match="has schema 2, and this version reads 1"):
        checkpoint.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 1}', "null", '{"schema": 1, "schema": 1}', "\x00"])
def test_a_manifest_that_is_something_else_is_one_error(tmp_path, text):
    folder = save(tmp_path, 1)
    (folder / "MANIFEST.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json"):
        checkpoint.load(folder)


def test_pruning_keeps_the_newest_that_verify_and_the_protected(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep=2, protect=(2,))
    assert steps(tmp_path) == [2, 4, 5]


def test_pruning_does_not_count_what_does_not_verify_and_never_takes_the_last_that_does(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    flip(tmp_path / "step-00000003" / "state.json", 9)
    save(tmp_path, 4, keep=2)
    assert steps(tmp_path) == [2, 3, 4]

    flip(tmp_path / "step-00000004" / "state.json", 9)
    flip(tmp_path / "step-00000002" / "state.json", 9)
    save(tmp_path, 5, keep=1)
    assert steps(tmp_path) == [5]

    # The new one is damaged on its way to the disk, so the one before it must stay.
    prune = checkpoint._prune

    def damage_then_prune(root: Path, *rest: object) -> None:
        flip(root / "step-00000006" / "adapter.safetensors", 2000)
        prune(root, *rest)

    monkeypatch.setattr(checkpoint, "_prune", damage_then_prune)
    save(tmp_path, 6, keep=1)
    assert steps(tmp_path) == [5, 6]
    assert_is_step(checkpoint.newest(tmp_path)[0], 5)


def test_the_one_just_saved_stays_even_when_later_steps_are_there(tmp_path):
    for step in (8, 9):
        save(tmp_path, step, keep=2)
    save(tmp_path, 5, keep=2)
    assert steps(tmp_path) == [5, 8, 9]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_never_saved(tmp_path, two, value):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=r"not finite in q\.A \(1 of 2\)"):
        checkpoint.save(tmp_path, 3, {"adapter": {"q.A": torch.tensor([value, 1.0])}}, {})
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        checkpoint.save(tmp_path, 3, {}, {"loss": value})
    assert steps(tmp_path) == [1, 2]


def test_requests_that_make_no_sense_are_all_told_at_once(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save(tmp_path, -1, {"../adapter": {}}, {}, keep=0)
    assert len(str(caught.value).splitlines()) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_checkpoints_has_no_newest(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "none") == (None, [])
