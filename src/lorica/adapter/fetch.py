"""Where an adapter lies: a folder, or a repository of the hub, of which only the adapter's own files are fetched."""

from pathlib import Path

from lorica import durable
from lorica.errors import AdapterError, RequestError

WANTED = ("adapter_model.safetensors", "adapter_config.json", "lorica.json", "README.md")


def folder_of(source: str | Path) -> Path:
    """RequestError where nothing of this name is here, AdapterError where the hub does not give it.

    A folder whose replacement a crash interrupted is there again afterwards.
    """
    path = Path(source).expanduser()
    if not path.exists():
        durable.sweep(path.parent, path.name)
    if path.is_dir():
        return path
    if path.exists():
        raise RequestError(f"{path}: a file; give the folder that holds adapter_config.json")
    if not _is_hub_id(source):
        raise RequestError(f"{path}: no such folder")
    return _fetched(str(source))


def _is_hub_id(source: str | Path) -> bool:
    """owner/name.  A single word is a folder that is not there."""
    parts = str(source).split("/")
    return isinstance(source, str) and len(parts) == 2 and all(parts) and parts[0][0] not in ".~"


def _fetched(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        offline = "; HF_HUB_OFFLINE is set and it is not in the local cache" if constants.HF_HUB_OFFLINE else ""
        raise AdapterError(f"{name}: no such folder here, and not to be had from the hub{offline}") from error
