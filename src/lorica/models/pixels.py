"""Images as a base was taught to see them: its own image processor where its folder has one, else

pixel_values = (resized to image_size, bilinear, / 255 - 0.5) / 0.5
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorica.errors import DataError, ModelError
from lorica.models.folder import folder_of
from lorica.models.foreign import transformers_library
from lorica.models.quiet import first_line, quiet

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""The second, which holds the first, is what transformers 5 writes for bases of images and text."""
Images = Callable[[Sequence[str]], Tensor]


def images_of(config: Any, source: str | None) -> Images:
    """Paths to pixel values (B, C, H, W) float32 for the base of this config.  ModelError where it sees no images."""
    _pillow()
    folder = folder_of(source, weights=False) if source else None
    if folder is not None and any((folder / name).is_file() for name in PROCESSORS):
        return _processed(folder)
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if size is None:
        raise ModelError(f"a {getattr(config, 'model_type', 'base')} model has no image_size, so it sees no images")
    height, width = (size, size) if isinstance(size, int) else size
    return lambda paths: torch.from_numpy(np.stack([_plain(opened(path), height, width) for path in paths]))


def opened(path: str) -> Any:
    """An image in red, green and blue.  DataError where the file is none."""
    try:
        with _pillow().open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such image") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: not readable as an image ({first_line(error)})") from error


def seen(path: str) -> None:
    """DataError where the file does not begin as an image; its pixels are not read."""
    try:
        _pillow().open(path).close()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such image") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: not readable as an image") from error


def _plain(image: Any, height: int, width: int) -> np.ndarray:
    pixels = np.asarray(image.resize((width, height), _pillow().Resampling.BILINEAR), np.float32)
    return (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5


def _processed(folder: Path) -> Images:
    try:
        with quiet():
            processor = transformers_library().AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # processors fail as whatever their library raises
        raise ModelError(f"{folder / PROCESSORS[0]}: {first_line(error)}") from error
    return lambda paths: processor([opened(path) for path in paths], return_tensors="pt")["pixel_values"].float()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ModelError("images are read with Pillow, which is not installed: pip install lorica[images]") from error
    return Image
