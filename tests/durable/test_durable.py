"""What is written through `durable` is there whole, or not at all, whatever fails and whenever."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_save

from crashes import DISKS, crash_after, crashes, faults
from lorica import durable
from lorica.errors import RunError

OLD, NEW = b"old" * 50, b"the new content" * 70
FAULTS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith((".tmp-", ".old-"))]


def write_old_file(root: Path) -> None:
    (root / "file").write_bytes(OLD)


def write_new_file(root: Path) -> None:
    durable.write_bytes(root / "file", NEW)


def write_old_folder(root: Path) -> None:
    (root / "out" / "sub").mkdir(parents=True)
    (root / "out" / "a").write_bytes(OLD)
    (root / "out" / "sub" / "b").write_bytes(OLD)


def write_new_folder(root: Path) -> None:
    with durable.new_folder(root / "out", replace=True) as folder:
        folder.write_bytes("a", NEW)
        folder.write_bytes("sub/b", NEW)
        folder.write_bytes("c", b"")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OLD_FOLDER, NEW_FOLDER = {"a": OLD, "sub/b": OLD}, {"a": NEW, "sub/b": NEW, "c": b""}


@pytest.mark.parametrize("disk", DISKS)
def test_a_file_is_old_or_new_after_a_crash_at_every_call(tmp_path, disk):
    states = 0
    for k, root in crashes(tmp_path, write_old_file, write_new_file, disk):
        durable.sweep(root)
        assert content(root) in ({"file": OLD}, {"file": NEW}), k
        states += 1
    assert states >= 6


@pytest.mark.parametrize("disk", DISKS)
def test_a_new_folder_is_whole_or_absent_after_a_crash_at_every_call(tmp_path, disk):
    for k, root in crashes(tmp_path, lambda root: None, write_new_folder, disk):
        durable.sweep(root)
        assert content(root) in ({}, {f"out/{name}": data for name, data in NEW_FOLDER.items()}), k
        assert not leftovers(root), k


@pytest.mark.parametrize("disk", DISKS)
def test_a_replaced_folder_is_old_or_new_after_a_crash_at_every_call(tmp_path, disk):
    states = []
    for k, root in crashes(tmp_path, write_old_folder, write_new_folder, disk):
        durable.sweep(root)
        states.append(content(root / "out"))
        assert states[-1] in (OLD_FOLDER, NEW_FOLDER), k
        assert not leftovers(root), k
        assert durable.sweep(root) == []
    assert OLD_FOLDER in states
    assert NEW_FOLDER in states


@pytest.mark.parametrize("disk", DISKS)
def test_a_crash_of_the_recovery_itself_is_recovered_from(tmp_path, disk):
    def die_between_the_renames(root: Path) -> None:
        write_old_folder(root)
        (root / "out").rename(root / ".old-out-1-0123abcd")
        for name, data in NEW_FOLDER.items():
            (root / ".tmp-out-1-0123abcd" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / ".tmp-out-1-0123abcd" / name).write_bytes(data)

    for k, root in crashes(tmp_path, die_between_the_renames, durable.sweep, disk):
        durable.sweep(root)
        assert content(root / "out") == NEW_FOLDER, k
        assert not leftovers(root), k


@pytest.mark.parametrize("disk", DISKS)
def test_what_has_returned_is_there_after_a_crash(tmp_path, disk):
    root = crash_after(tmp_path / "file", write_old_file, write_new_file, disk)
    assert content(root) == {"file": NEW}
    root = crash_after(tmp_path / "folder", write_old_folder, write_new_folder, disk)
    assert content(root / "out") == NEW_FOLDER
    root = crash_after(tmp_path / "fresh", lambda root: None, write_new_folder, disk)
    assert content(root / "out") == NEW_FOLDER
    root = crash_after(tmp_path / "deep", lambda root: None, lambda root: write_new_folder(root / "a" / "b"), disk)
    assert content(root / "a" / "b" / "out") == NEW_FOLDER


@pytest.mark.parametrize("disk", DISKS)
def test_what_others_write_into_a_new_folder_is_synced_with_it(tmp_path, disk):
    def write(root: Path) -> None:
        with durable.new_folder(root / "out") as folder:
            (folder.path / "sub").mkdir()
            descriptor = os.open(folder.path / "sub" / "foreign", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, NEW)
            os.close(descriptor)

    assert content(crash_after(tmp_path, lambda root: None, write, disk)) == {"out/sub/foreign": NEW}


def test_control_without_fsync_what_has_returned_is_lost(tmp_path):
    root = crash_after(tmp_path / "file", write_old_file, write_new_file, "lost", syncs=False)
    assert content(root) == {"file": OLD}
    root = crash_after(tmp_path / "folder", write_old_folder, write_new_folder, "lost", syncs=False)
    assert content(root / "out") == OLD_FOLDER


def test_control_without_fsync_a_torn_file_and_a_torn_folder_are_found(tmp_path):
    files = [
        content(root) for _, root in crashes(tmp_path / "file", write_old_file, write_new_file, "torn", syncs=False)
    ]
    assert any(found["file"] not in (OLD, NEW) for found in files)
    folders = []
    for _, root in crashes(tmp_path / "folder", write_old_folder, write_new_folder, "torn", syncs=False):
        durable.sweep(root)
        folders.append(content(root / "out"))
    assert any(found not in (OLD_FOLDER, NEW_FOLDER) for found in folders)


def test_control_a_replacement_that_removes_the_old_first_loses_both(tmp_path, monkeypatch):
    def remove_first(target: Path, draft: Path) -> None:
        durable.remove(target)
        os.rename(draft, target)

    monkeypatch.setattr(durable, "_replace", remove_first)
    states = []
    for _, root in crashes(tmp_path, write_old_folder, write_new_folder, "killed"):
        durable.sweep(root)
        states.append(content(root / "out"))
    assert {} in states


def test_control_a_folder_written_in_place_is_found_torn(tmp_path):
    def in_place(root: Path) -> None:
        folder = durable.Folder(root / "out", root / "out")
        folder.write_bytes("a", NEW)
        folder.write_bytes("sub/b", NEW)
        folder.write_bytes("c", b"")

    states = [content(root / "out") for _, root in crashes(tmp_path, write_old_folder, in_place, "killed")]
    assert any(state not in (OLD_FOLDER, NEW_FOLDER) for state in states)


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
def test_a_failing_call_is_one_line_and_leaves_old_or_new(tmp_path, code, forever):
    for k, root, error in faults(tmp_path, write_old_folder, write_new_folder, code, forever):
        assert isinstance(error, RunError), (k, error)
        assert "\n" not in str(error)
        assert errno.errorcode[code] in str(error)
        assert str(root) in str(error)
        assert forever or content(root / "out") in (OLD_FOLDER, NEW_FOLDER), k
        durable.sweep(root)
        assert content(root / "out") in (OLD_FOLDER, NEW_FOLDER), k
        assert not leftovers(root), k


def test_a_failing_call_leaves_a_file_old_or_new(tmp_path):
    for k, root, error in faults(tmp_path, write_old_file, write_new_file, errno.EIO):
        assert str(error) == f"{root / 'file'}: Input/output error (EIO); check the disk"
        assert content(root) in ({"file": OLD}, {"file": NEW}), k


def test_a_full_disk_is_told_with_the_bytes_needed_and_free(tmp_path):
    errors = [str(error) for _, _, error in faults(tmp_path, write_old_file, write_new_file, errno.ENOSPC)]
    assert all(f"(ENOSPC): {len(NEW):,} bytes needed, " in error and " free; make room" in error for error in errors)
    with pytest.raises(RunError, match=r"needed, [\d,]+ free; make room or choose another output"):
        durable.require_space(tmp_path / "not" / "yet", 1 << 62)


def test_short_writes_are_carried_on_with(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    durable.write_bytes(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_an_error_inside_leaves_no_folder_and_no_draft(tmp_path):
    def write_and_fail() -> None:
        with durable.new_folder(tmp_path / "out") as folder:
            folder.write_text("a", "text")
            raise KeyError("a mistake of the caller")

    with pytest.raises(KeyError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    write_old_folder(tmp_path)
    with pytest.raises(RunError, match="exists and is not empty"), durable.new_folder(tmp_path / "out"):
        pass
    assert content(tmp_path / "out") == OLD_FOLDER
    (tmp_path / "empty").mkdir()
    with durable.new_folder(tmp_path / "empty") as folder:
        folder.write_text("a", "text")
    assert content(tmp_path / "empty") == {"a": b"text"}


def test_a_folder_filled_meanwhile_by_another_is_not_overwritten(tmp_path):
    def write_while_another_does() -> None:
        with durable.new_folder(tmp_path / "out") as folder:
            folder.write_text("a", "mine")
            write_old_folder(tmp_path)

    with pytest.raises(RunError, match="ENOTEMPTY"):
        write_while_another_does()
    assert content(tmp_path) == {"out/a": OLD, "out/sub/b": OLD}


def test_a_sweep_leaves_the_drafts_of_the_living_and_the_files_of_others(tmp_path):
    (tmp_path / ".tmp-notes").write_text("someone else's")
    with durable.new_folder(tmp_path / "out") as folder:
        folder.write_text("a", "text")
        assert durable.sweep(tmp_path) == []
    assert content(tmp_path) == {"out/a": b"text", ".tmp-notes": b"someone else's"}


def interrupted(root: Path) -> None:
    """As a crash leaves a replacement between its two renames."""
    write_old_folder(root)
    (root / "out").rename(root / ".old-out-1-0123abcd")
    (root / ".tmp-out-1-0123abcd").mkdir()
    (root / ".tmp-out-1-0123abcd" / "a").write_bytes(NEW)


def test_a_sweep_of_one_name_settles_that_name_alone(tmp_path):
    interrupted(tmp_path)
    (tmp_path / ".tmp-other-1-0123abcd").write_bytes(OLD)
    (tmp_path / ".tmp-.old-out-1-0123abcd-1-0123abcd").write_bytes(OLD)
    assert durable.sweep(tmp_path, "other thing") == []
    assert len(durable.sweep(tmp_path, "out")) == 2
    assert content(tmp_path) == {"out/a": NEW, ".tmp-other-1-0123abcd": OLD}


def test_records_are_the_sizes_and_hashes_of_all_files_whoever_wrote_them(tmp_path):
    with durable.new_folder(tmp_path / "out") as folder:
        folder.write_bytes("a", NEW)
        (folder.path / "foreign").write_bytes(OLD)
        records = folder.records()
    assert records["a"] == {"bytes": len(NEW), "sha256": hashlib.sha256(NEW).hexdigest()}
    assert records["foreign"] == {"bytes": len(OLD), "sha256": hashlib.sha256(OLD).hexdigest()}
    assert durable.differences(tmp_path / "out", records) == []
    (tmp_path / "out" / "a").write_bytes(NEW[:-1] + b"!")
    (tmp_path / "out" / "foreign").unlink()
    problems = durable.differences(tmp_path / "out", {**records, "../out/a": records["a"]})
    assert problems == [
        "a does not have its recorded SHA-256",
        "foreign is missing",
        "'../out/a' is not a file of the folder",
    ]


def tensors_of_every_kind() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(3, 5, generator=generator)
    tied = torch.randn(4, 4, generator=generator)
    return {
        "0-d": torch.tensor(-0.0, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "transposed": floats.t(),
        "strided": floats[:, ::2],
        "expanded": floats[:1].expand(4, 5),
        "shared": tied,
        "shared too": tied[1:],
        'ünïcode "quoted"': torch.nn.Parameter(floats.double()),
        "steps": torch.tensor([2**62 + 1, -1]),
        "generator": torch.get_rng_state(),
        "mask": torch.tensor([True, False]),
        "half": floats.half(),
        "int32": torch.arange(3, dtype=torch.int32),
        "e4m3": floats.to(torch.float8_e4m3fn),
        "e5m2": floats.to(torch.float8_e5m2),
        "uint16": torch.tensor([65535], dtype=torch.uint16),
    }


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_safetensors_reads_back_every_dtype_shape_and_stride_to_the_bit(tmp_path):
    tensors = tensors_of_every_kind()
    with durable.new_folder(tmp_path / "out") as folder:
        folder.write_tensors("t.safetensors", tensors, {"format": "pt"})
    found = load_file(tmp_path / "out" / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert as_bytes(found[name]) == as_bytes(tensor), name
    with safe_open(tmp_path / "out" / "t.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_safetensors_writes_is_read_to_the_bit(tmp_path):
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors_of_every_kind().items()}
    (tmp_path / "t.safetensors").write_bytes(safetensors_save(tensors, {"format": "pt"}))
    found = durable.read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert as_bytes(found[name]) == as_bytes(tensor), name


def test_the_file_is_the_one_that_safetensors_writes(tmp_path):
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors_of_every_kind().items()}
    with durable.new_folder(tmp_path / "out") as folder:
        folder.write_tensors("t.safetensors", tensors, {"format": "pt"})
    assert (tmp_path / "out" / "t.safetensors").read_bytes() == safetensors_save(tensors, {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_not_written_when_asked(tmp_path, value):
    tensors = {"good": torch.ones(3), "bad": torch.tensor([1.0, value]), "whole": torch.tensor([1])}
    with (
        pytest.raises(RunError, match=r"t.safetensors: not written, .* not finite in bad \(1 of 2\)"),
        durable.new_folder(tmp_path / "out") as folder,
    ):
        folder.write_tensors("t.safetensors", tensors, finite=True)
    assert list(tmp_path.iterdir()) == []
    with durable.new_folder(tmp_path / "out") as folder:
        folder.write_tensors("t.safetensors", tensors)


def test_all_tensors_that_cannot_be_written_are_named_at_once(tmp_path):
    bad = {"z": torch.zeros(1, dtype=torch.complex64), "m": torch.zeros(1, device="meta"), "ok": torch.zeros(1)}
    with pytest.raises(RunError) as caught, durable.new_folder(tmp_path / "out") as folder:
        folder.write_tensors("t.safetensors", bad)
    assert [
        "z: safetensors holds no" in line or "m: has no values" in line for line in str(caught.value).split("\n")
    ] == [
        True,
        True,
    ]


def test_json_is_strict_both_ways(tmp_path):
    path = tmp_path / "deep" / "value.json"
    durable.write_json(path, {"b": [1, 2.5, None], "a": "é"}, sort_keys=True)
    assert path.read_text() == '{\n  "a": "é",\n  "b": [\n    1,\n    2.5,\n    null\n  ]\n}\n'
    assert durable.read_json(path) == {"a": "é", "b": [1, 2.5, None]}
    with pytest.raises(RunError, match="cannot be written as JSON"):
        durable.write_json(path, {"a": float("nan")})
    assert durable.read_json(path)["a"] == "é"
    for text in ('{"a": 1, "a": 2}', '{"a": NaN}', '{"a": ', "[" * 100_000, "\udc80"):
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(RunError, match="is not valid JSON"):
            durable.read_json(path)


def write_metrics(path: Path, steps: int) -> None:
    with durable.JsonLines(path) as lines:
        for step in range(1, steps + 1):
            lines.write({"step": step, "loss": 1 / step})


def test_each_metrics_line_is_seen_at_once_and_a_torn_one_is_cut_before_more_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with durable.JsonLines(path) as lines:
        lines.write({"step": 1})
        assert path.read_text() == '{"step": 1}\n'
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    with durable.JsonLines(path) as lines:
        lines.write({"step": 2})
        lines.sync()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_resume_cuts_metrics_back_to_the_checkpoint_and_drops_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, 9)
    with path.open("ab") as file:
        file.write(b'{"step": 10, "lo')
    assert durable.truncate_after(path, 6) == durable.Cut(kept=6, beyond=3, torn=1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert durable.truncate_after(path, 6) == durable.Cut(kept=6, beyond=0, torn=0)
    assert durable.truncate_after(tmp_path / "none.jsonl", 6) == durable.Cut(kept=0, beyond=0, torn=0)


@pytest.mark.parametrize("disk", DISKS)
def test_metrics_lines_that_were_synced_are_there_after_a_crash(tmp_path, disk):
    def write_and_sync(root: Path) -> None:
        with durable.JsonLines(root / "metrics.jsonl") as lines:
            lines.write({"step": 1})
            lines.sync()

    root = crash_after(tmp_path, lambda root: None, write_and_sync, disk)
    assert (root / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("disk", DISKS)
def test_metrics_cut_back_are_whole_after_a_crash_at_every_call(tmp_path, disk):
    def prepare(root: Path) -> None:
        write_metrics(root / "metrics.jsonl", 5)

    for _, root in crashes(tmp_path, prepare, lambda root: durable.truncate_after(root / "metrics.jsonl", 3), disk):
        assert len((root / "metrics.jsonl").read_text().splitlines()) in (3, 5)


def test_metrics_lines_before_a_crash_are_whole_and_after_a_full_disk_unchanged(tmp_path):
    for k, root in crashes(tmp_path, lambda root: None, lambda root: write_metrics(root / "m", 4), "killed"):
        kept = durable.truncate_after(root / "m", 99).kept
        assert kept == max(0, k - 4), k  # the file is made, its name synced, its tail cut (3 calls), then a call a line
    for _, root, error in faults(
        tmp_path / "full",
        lambda root: write_metrics(root / "m", 2),
        lambda root: write_metrics(root / "m", 1),
        errno.ENOSPC,
    ):
        assert "bytes needed" in str(error)
        assert len((root / "m").read_text().splitlines()) == 2


def test_a_metrics_line_that_is_not_json_is_refused_and_not_written(tmp_path):
    with durable.JsonLines(tmp_path / "m") as lines:
        with pytest.raises(RunError, match="cannot be written as JSON"):
            lines.write({"loss": float("nan")})
        lines.write({"step": 1})
    assert (tmp_path / "m").read_text() == '{"step": 1}\n'


HOLD = (
    "import sys; from lorica.durable import Lock\nwith Lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
)


def test_a_second_process_is_kept_out_until_the_first_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError) as caught, durable.Lock(tmp_path):
            pass
        assert str(caught.value).startswith(f"{tmp_path}: another run uses this folder (process {holder.pid})")
        holder.kill()
        holder.wait()
        with durable.Lock(tmp_path), pytest.raises(RunError, match="another run"), durable.Lock(tmp_path):
            pass


def test_the_module_is_imported_without_torch():
    seen = subprocess.run(
        [sys.executable, "-c", "import lorica.durable, sys; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert seen.stdout == "False\n"
