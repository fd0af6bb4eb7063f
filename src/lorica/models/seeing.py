"""Bases of images and text: what one of their rows is made of, and where the logits of the text stand.

captions   BLIP      begin prompt text end                the decoder sees the image through cross-attention
answers    BLIP      prompt  |  begin text end            an encoder reads the question, a decoder writes the answer
places     LLaVA     begin <image> ... prompt text end    the image's vectors take the places of its tokens
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from lorica.errors import ModelError
from lorica.models.folder import folder_of
from lorica.models.foreign import transformers_library
from lorica.models.quiet import first_line, quiet

PROCESSOR = "processor_config.json"
CLASSLESS = ("siglip_vision_model", "siglip2_vision_model")
"""Vision towers whose image has no vector of its own beside those of its patches."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """begin, end: the tokens around what is written.  patches: how many vectors an image is.  token: what stands in
    the text for each of `places` of them; None where the image is no part of the text."""

    kind: Literal["captions", "answers", "places"]
    begin: int | None
    end: int | None
    patches: int
    token: str | None = None
    token_id: int | None = None
    places: int = 0


def sight_of(config: Any, tokenizer: Any, source: str | None = None) -> Sight:
    """How the base of this config is shown an image and a text.  ModelError where it takes none that we know."""
    named = next(iter(getattr(config, "architectures", None) or ()), "")
    if named not in _SIGHTS:
        kind = named or f"a {getattr(config, 'model_type', 'base')} model without a named architecture"
        raise ModelError(f"vision_language: {kind} is not read; it reads {', '.join(_SIGHTS)}")
    return _SIGHTS[named](config, tokenizer, source)


def text_logits(model: Any, call: Callable[[], Any]) -> Tensor:
    """(B, L, vocabulary) of what is written, when `call` runs the model's forward.  BLIP for questions returns only the
    loss of its decoder, so that is listened to."""
    decoder = getattr(model, "text_decoder", None)
    if not hasattr(model, "text_encoder") or decoder is None:
        return call().logits
    with _heard(decoder) as outputs:
        call()
    return outputs[-1].logits


@contextmanager
def _heard(module: nn.Module) -> Iterator[list[Any]]:
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def _captions(config: Any, tokenizer: Any, source: str | None) -> Sight:
    words = config.text_config
    return Sight(kind="captions", begin=words.bos_token_id, end=words.sep_token_id, patches=_patches(config) + 1)


def _answers(config: Any, tokenizer: Any, source: str | None) -> Sight:
    words = config.text_config
    return Sight(kind="answers", begin=words.bos_token_id, end=words.sep_token_id, patches=_patches(config) + 1)


def _places(config: Any, tokenizer: Any, source: str | None) -> Sight:
    number = config.image_token_id
    token = tokenizer.convert_ids_to_tokens(number)
    if token is None or tokenizer(token, add_special_tokens=False)["input_ids"] != [number]:
        raise ModelError(f"the tokenizer has no token {number}, which the config says stands for images; add <image>")
    places = _told_by_processor(source, token) or _places_of(config)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return Sight(kind="places", begin=begin, end=end, patches=places, token=token, token_id=number, places=places)


def _places_of(config: Any) -> int:
    whole = 0 if config.vision_config.model_type in CLASSLESS else 1
    return _patches(config) + whole - (config.vision_feature_select_strategy == "default")


def _patches(config: Any) -> int:
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    return int(size // patch) ** 2


def _told_by_processor(source: str | None, token: str) -> int | None:
    """How often the base's own processor repeats the token of an image; None where the folder has none."""
    folder = folder_of(source, weights=False) if source else None
    if folder is None or not (folder / PROCESSOR).is_file():
        return None
    processor = _processor(folder)
    if getattr(processor, "patch_size", None) is None:
        return None
    from PIL import Image

    with quiet():
        written = processor(images=Image.new("RGB", (64, 64)), text=token)["input_ids"]
    ids = written[0] if isinstance(written[0], list) else written
    return list(ids).count(processor.image_token_id)


def _processor(folder: Path) -> Any:
    try:
        with quiet():
            return transformers_library().AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # processors fail as whatever their library raises
        raise ModelError(f"{folder / PROCESSOR}: {first_line(error)}") from error


_SIGHTS: Mapping[str, Callable[[Any, Any, str | None], Sight]] = {
    "BlipForConditionalGeneration": _captions,
    "BlipForQuestionAnswering": _answers,
    "LlavaForConditionalGeneration": _places,
}
