"""Files that survive a crash: whenever the power fails, a reader finds the old content or the new, each complete.

    file     draft beside it -> write -> fsync -> rename -> fsync parent
    folder   draft beside it -> write and fsync each file -> fsync folder -> rename -> fsync parent
    replace  the same, but the old folder is first renamed to .old-X, and removed when the new one is in place

A draft is `.tmp-<name>-<pid>-<random>`, locked while its maker lives; `sweep` removes those of the dead and settles
a replacement that was interrupted. What the system refuses is told in one line, as a `RunError`.
The order (data, then name, then drop the old) is that of Pillai et al., "All File Systems Are Not Created Equal", 2014.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lorica.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

AnyPath = str | os.PathLike[str]
Bytes = bytes | bytearray | memoryview

DRAFT = re.compile(r"\.tmp-(.+)-\d+-[0-9a-f]{8}", re.DOTALL)
ASIDE = re.compile(r"\.old-(.+)-\d+-[0-9a-f]{8}", re.DOTALL)

FULL = (errno.ENOSPC, errno.EDQUOT)
REMEDIES = {
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}

# In the order in which safetensors lays tensors out: widest first, so that each starts at a multiple of its width.
SAFETENSORS_DTYPES = {
    "torch.uint64": "U64",
    "torch.int64": "I64",
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.uint32": "U32",
    "torch.int32": "I32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.uint16": "U16",
    "torch.int16": "I16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
_TORCH_DTYPES = {name: dtype.removeprefix("torch.") for dtype, name in SAFETENSORS_DTYPES.items()}


def write_bytes(path: AnyPath, data: Bytes) -> None:
    """The file holds `data`, or, after any failure, exactly what it held before. Makes the folders above it."""
    target = Path(path)
    needed = memoryview(data).nbytes
    _make_folders(target.parent)
    with reporting(target, needed), _draft(target, _make_file) as draft:
        with Writer(draft, target, needed) as writer:
            writer.write(data)
        os.replace(draft, target)
        _sync_folder(target.parent)


def write_text(path: AnyPath, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: AnyPath, value: Any, sort_keys: bool = False) -> None:
    """Strict JSON, indented; a NaN or an infinity is a `RunError`."""
    write_bytes(path, json_bytes(value, path, sort_keys))


def json_bytes(value: Any, where: AnyPath, sort_keys: bool = False, indent: int | None = 2) -> bytes:
    """`value` as strict JSON with a newline at the end; what JSON cannot hold is a `RunError` that names `where`."""
    try:
        text = json.dumps(value, allow_nan=False, indent=indent, sort_keys=sort_keys, ensure_ascii=False)
        return f"{text}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{os.fspath(where)}: cannot be written as JSON: {error}") from error


def read_json(path: AnyPath) -> Any:
    """The value of a JSON file; duplicate keys, NaN and infinities are refused as damage, with a `RunError`."""
    with reporting(path):
        data = Path(path).read_bytes()
    return json_value(data, path)


def read_tensors(path: AnyPath) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file whose bytes are known to be right, over one buffer that holds it whole.

    safetensors' own reader does not say what the system refused, and a page of its map that the disk does not give
    ends the process.
    """
    with reporting(path), Path(path).open("rb") as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        read = file.readinto(data)
    begin = 8 + int.from_bytes(data[:8], "little")
    entries = json_value(data[8:begin], path)
    if read != len(data) or not isinstance(entries, dict):
        raise RunError(f"{os.fspath(path)}: is not a safetensors file")
    return {name: _tensor(data, begin, entry) for name, entry in entries.items() if name != "__metadata__"}


def json_value(data: Bytes, where: AnyPath) -> Any:
    """The value of the bytes of a JSON file, as strictly."""
    try:
        text = str(data, "utf-8")
        return json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise RunError(f"{os.fspath(where)}: is not valid JSON: {error}") from error


def sha256(path: AnyPath) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with reporting(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(folder: AnyPath, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What in `folder` is not as recorded: one reason a file of `files` = {name: {"bytes": size, "sha256": digest}}."""
    with reporting(folder):
        return [reason for name, record in files.items() if (reason := _difference(Path(folder), name, record))]


def require_space(folder: AnyPath, needed: int) -> None:
    """A `RunError` when the file system of `folder` (or of the nearest folder above it) has under `needed` bytes."""
    free = _free_bytes(Path(folder))
    if free is not None and free < needed:
        raise RunError(f"{os.fspath(folder)}: {_space(needed, free)}")


class Writer:
    """A new file that is hashed as it is written, and synced when it closes without an error.

    `named` is the path that errors give, for a file that will be renamed.
    """

    def __init__(self, path: AnyPath, named: AnyPath | None = None, needed: int | None = None) -> None:
        self.path, self.named, self.needed = Path(path), Path(named or path), needed
        self.bytes = 0
        self._hash = hashlib.sha256()
        with reporting(self.named, needed):
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, data: Bytes) -> int:
        view = memoryview(data)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        with reporting(self.named, self.needed or view.nbytes):
            _write_all(self._descriptor, view)
        self._hash.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def record(self) -> dict[str, Any]:
        """`{"bytes": ..., "sha256": ...}` of what was written so far."""
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with reporting(self.named, self.needed or self.bytes):
            try:
                if kind is None:
                    os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)


class Folder:
    """A folder being written: `path` is the draft, `target` its name once complete. Names may hold slashes."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self.target = path, target
        self._records: dict[str, dict[str, Any]] = {}

    @contextmanager
    def stream(self, name: str, needed: int | None = None) -> Iterator[Writer]:
        """A file to write in pieces; `needed` bytes are told when the disk is full."""
        _make_folders((self.path / name).parent)
        with Writer(self.path / name, self.target / name, needed) as writer:
            yield writer
        self._records[name] = writer.record()

    def write_bytes(self, name: str, data: Bytes) -> None:
        with self.stream(name, memoryview(data).nbytes) as writer:
            writer.write(data)

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any, sort_keys: bool = False) -> None:
        self.write_bytes(name, json_bytes(value, self.target / name, sort_keys))

    def write_tensors(
        self,
        name: str,
        tensors: Mapping[str, "Tensor"],
        metadata: Mapping[str, str] | None = None,
        finite: bool = False,
    ) -> None:
        """A safetensors file, one tensor in memory at a time; with `finite`, a NaN or an infinity is a `RunError`."""
        where = self.target / name
        header, order = _safetensors_header(tensors, metadata, where)
        if finite:
            _require_finite(tensors, where)
        with self.stream(name, len(header) + sum(tensors[key].nbytes for key in order)) as writer:
            writer.write(header)
            for key in order:
                writer.write(_raw(tensors[key]))

    def records(self) -> dict[str, dict[str, Any]]:
        """`{name: {"bytes": ..., "sha256": ...}}` of every file now in the folder, whoever wrote it."""
        names = sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())
        return {name: self._records.get(name) or _record(self.path / name) for name in names}

    def sync(self) -> None:
        """All of it is on the disk: files that others wrote (ours are already), then folders, the deepest first."""
        for parent, _, names in os.walk(self.path, topdown=False):
            for name in names:
                path = Path(parent, name)
                if path.relative_to(self.path).as_posix() not in self._records:
                    _sync(path, os.O_RDONLY)
            _sync_folder(Path(parent))


@contextmanager
def new_folder(target: AnyPath, replace: bool = False) -> Iterator[Folder]:
    """`with new_folder("out") as folder: ...` makes `out` appear complete at the end, or not at all after an error.

    A target that exists and is not empty is a `RunError`, unless `replace`: then it stays until the new one is whole.
    """
    target = Path(target) if Path(target).name not in ("", "..") else Path(os.path.abspath(target))
    if not replace and _occupied(target):
        raise RunError(f"{target}: exists and is not empty; choose another folder, or remove this one")
    _make_folders(target.parent)
    with reporting(target), _draft(target, os.mkdir) as draft:
        folder = Folder(draft, target)
        yield folder
        folder.sync()
        if replace and _occupied(target):
            _replace(target, draft)
        else:
            os.rename(draft, target)
            _sync_folder(target.parent)


def remove(path: AnyPath) -> None:
    """Takes a file or folder away at one instant: it is renamed first, so that no half of it keeps its name."""
    path = Path(path)
    with reporting(path), suppress(FileNotFoundError):
        rubbish = _sibling(path)
        os.rename(path, rubbish)
        _sync_folder(path.parent)
        _erase(rubbish)


def sweep(parent: AnyPath, name: str | None = None) -> list[str]:
    """Settles what crashed writers left in a folder, and says what it did; drafts of the living are left alone.

    name: only what was to become, or to replace, the file or folder of this name.
    """
    parent = Path(parent)
    if not parent.is_dir():
        return []
    with reporting(parent):
        settled = [note for path in _named(ASIDE, parent, name) if (note := _settle(path))]
        return settled + [note for path in _named(DRAFT, parent, name) if (note := _discard(path))]


class Lock:
    """`with Lock(folder): ...` is one process at a time; the lock goes with its process, however that ends."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = Path(folder)
        self._descriptor = -1

    def __enter__(self) -> Self:
        _make_folders(self.folder)
        with reporting(self.folder):
            self._descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(self._occupied()) from None
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _occupied(self) -> str:
        owner = os.pread(self._descriptor, 20, 0).decode(errors="replace") or "unknown"
        os.close(self._descriptor)
        return f"{self.folder}: another run uses this folder (process {owner}); wait for it, or choose another output"


class JsonLines:
    """Records appended to a file, each a whole line that any reader sees at once; a torn last line is cut off first."""

    def __init__(self, path: AnyPath) -> None:
        self.path = Path(path)
        _make_folders(self.path.parent)
        with reporting(self.path):
            new = not self.path.exists()
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            if new:
                _sync_folder(self.path.parent)
            self._size = self._cut_torn_line()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line; when that fails, the file is as it was."""
        line = json_bytes(record, self.path, indent=None)
        with reporting(self.path, len(line)):
            try:
                _write_all(self._descriptor, memoryview(line))
            except BaseException:
                os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(line)

    def sync(self) -> None:
        """What was written outlives a power failure: call it before the checkpoint that these lines lead up to."""
        with reporting(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        with reporting(self.path):
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_torn_line(self) -> int:
        whole = self.path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(self._descriptor, whole)
        return whole


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What `truncate_after` kept and dropped, in lines: beyond the step, and unreadable (torn by a crash)."""

    kept: int
    beyond: int
    torn: int


def truncate_after(path: AnyPath, step: int) -> Cut:
    """Drops at one instant the lines of a JSON-lines file whose "step" is beyond `step`, and those torn by a crash."""
    path = Path(path)
    with reporting(path):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    steps = [_step_of(line) for line in lines]
    kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    if len(kept) < len(lines):
        write_bytes(path, b"".join(kept))
    torn = steps.count(None)
    return Cut(kept=len(kept), beyond=len(lines) - len(kept) - torn, torn=torn)


@contextmanager
def reporting(path: AnyPath, needed: int | None = None) -> Iterator[None]:
    """An `OSError` inside becomes a one-line `RunError`: the path, the system's words, and the remedy."""
    try:
        yield
    except OSError as error:
        raise RunError(complaint(Path(path), error, needed)) from error


def complaint(path: Path, error: OSError, needed: int | None = None) -> str:
    """What the system refused, in one line; `needed` bytes are told when the disk is full."""
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    told = f"{path}: {error.strerror or error} ({code})"
    if error.errno in FULL:
        return f"{told}: {_space(needed, _free_bytes(path))}"
    inside = [str(name) for name in (error.filename, error.filename2) if name and Path(os.fsdecode(name)) != path]
    told += f" at {inside[0]}" if inside and error.errno == errno.ENOENT else ""
    return f"{told}; {REMEDIES[error.errno]}" if error.errno in REMEDIES else told


def _space(needed: int | None, free: int | None) -> str:
    wanted = "some more" if needed is None else f"{needed:,}"
    left = "an unknown number" if free is None else f"{free:,}"
    return f"{wanted} bytes needed, {left} free; make room or choose another output"


def _free_bytes(path: Path) -> int | None:
    for folder in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return value


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is beyond any number")
    return value


def _record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _difference(folder: Path, name: str, record: Mapping[str, Any]) -> str | None:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name!r} is not a file of the folder"
    if not path.is_file():
        return f"{name} is missing"
    if (size := path.stat().st_size) != record.get("bytes"):
        return f"{name} has {size} bytes, not {record.get('bytes')}"
    return None if sha256(path) == record.get("sha256") else f"{name} does not have its recorded SHA-256"


def _safetensors_header(
    tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None, where: Path
) -> tuple[bytes, list[str]]:
    """The length and the JSON that open a safetensors file, and the order of the tensors that follow."""
    _require_writable(tensors, where)
    widths = list(SAFETENSORS_DTYPES)
    order = sorted(tensors, key=lambda name: (widths.index(str(tensors[name].dtype)), name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    start = 0
    for name in order:
        tensor, end = tensors[name], start + tensors[name].nbytes
        dtype = SAFETENSORS_DTYPES[str(tensor.dtype)]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def _require_writable(tensors: Mapping[str, "Tensor"], where: Path) -> None:
    problems = [f"{where}: a tensor cannot be named '__metadata__'"] if "__metadata__" in tensors else []
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in SAFETENSORS_DTYPES:
            problems.append(f"{where}: {name}: safetensors holds no {tensor.dtype}; convert it first")
        elif tensor.is_meta:
            problems.append(f"{where}: {name}: has no values (it is on the meta device); load it first")
    if problems:
        raise RunError.of(problems)


def _require_finite(tensors: Mapping[str, "Tensor"], where: Path) -> None:
    counts = {name: _not_finite(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}
    if bad := {name: count for name, count in counts.items() if count}:
        named = ", ".join(f"{name} ({count} of {tensors[name].numel()})" for name, count in list(bad.items())[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise RunError(f"{where}: not written, because values are not finite in {named}{more}")


def _not_finite(tensor: "Tensor") -> int:
    values = tensor.detach()
    values = values.float() if values.element_size() == 1 else values
    return int((~values.isfinite()).sum())


def _tensor(data: bytearray, begin: int, entry: Mapping[str, Any]) -> "Tensor":
    import torch

    dtype = getattr(torch, _TORCH_DTYPES[entry["dtype"]])
    start, stop = entry["data_offsets"]
    if start == stop:
        return torch.empty(entry["shape"], dtype=dtype)
    raw = torch.frombuffer(data, dtype=torch.uint8, count=stop - start, offset=begin + start)
    return raw.view(dtype).reshape(entry["shape"])


def _raw(tensor: "Tensor") -> memoryview:
    import torch

    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


def _write_all(descriptor: int, view: memoryview) -> None:
    while view.nbytes:
        view = view[os.write(descriptor, view) :]


def _make_folders(folder: Path) -> None:
    """The folder and those above it exist, and each new one outlives a power failure."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with reporting(folder), suppress(FileExistsError):
        os.mkdir(folder)
        _sync_folder(folder.parent)
    if not folder.is_dir():
        raise RunError(f"{folder}: is a file, and a folder is needed there")


def _sync_folder(folder: Path) -> None:
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_there(path: Path) -> bool:
    """As os.path.lexists, which also says no where the system does not answer."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _occupied(path: Path) -> bool:
    """Whether something is there that a rename would not replace: an empty folder does not count."""
    return _is_there(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir()))


def _sibling(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _make_file(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


@contextmanager
def _draft(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A locked new file or folder beside `target`, for the body to rename to it; erased when the body fails."""
    draft, lock = _locked_draft(target, make)
    try:
        yield draft
    except BaseException:
        with suppress(OSError):
            _erase(draft)
        raise
    finally:
        os.close(lock)


def _locked_draft(target: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    # A sweep can take the draft in the instant between its making and its locking: then the next name is tried.
    while True:
        draft = _sibling(target)
        make(draft)
        try:
            lock = _lock_existing(draft)
        except BaseException:
            _erase(draft)
            raise
        if lock is not None:
            return draft, lock


def _lock_existing(path: Path) -> int | None:
    """A descriptor that holds the lock of `path`, or None when another process holds it or has removed the path."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _replace(target: Path, draft: Path) -> None:
    """At every instant one of target, .old-X and the draft is complete, and `_settle` knows which from what exists."""
    aside = draft.with_name(".old-" + draft.name.removeprefix(".tmp-"))
    os.rename(target, aside)
    try:
        os.rename(draft, target)
    except BaseException:
        if not _is_there(target):
            os.rename(aside, target)
        raise
    _sync_folder(target.parent)
    remove(aside)


def _named(kind: re.Pattern[str], parent: Path, name: str | None) -> list[Path]:
    found = [path for path in sorted(parent.iterdir()) if kind.fullmatch(path.name)]
    return [path for path in found if name in (None, _meant(path.name))]


def _meant(name: str) -> str:
    """What a draft or an aside was to become; one that was being removed is a draft of its own name."""
    match = DRAFT.fullmatch(name) or ASIDE.fullmatch(name)
    return _meant(match.group(1)) if match else name


def _settle(aside: Path) -> str | None:
    """Finishes a replacement whose new folder is complete, and undoes one whose new folder is gone."""
    match = ASIDE.fullmatch(aside.name)
    target = aside.with_name(match.group(1) if match else aside.name)
    draft = aside.with_name(".tmp-" + aside.name.removeprefix(".old-"))
    if _is_there(target):
        remove(aside)
        return f"removed what {target} replaced"
    if not draft.exists():
        return _rename_in(aside, target, f"restored {target}")
    if (lock := _lock_existing(draft)) is None:
        return None
    try:
        note = _rename_in(draft, target, f"finished the replacement of {target}")
        remove(aside)
        return note
    finally:
        os.close(lock)


def _rename_in(source: Path, target: Path, note: str) -> str:
    os.rename(source, target)
    _sync_folder(target.parent)
    return note


def _discard(draft: Path) -> str | None:
    lock = None if draft.is_symlink() else _lock_existing(draft)
    if lock is None and not draft.is_symlink():
        return None
    try:
        _erase(draft)
        return f"removed {draft}, which a crash left unfinished"
    finally:
        if lock is not None:
            os.close(lock)


def _erase(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _step_of(line: bytes) -> float | None:
    """The step of a metrics line, minus infinity when it has none, None when a crash tore the line."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record.get("step", -float("inf")) if isinstance(record, dict) else None
