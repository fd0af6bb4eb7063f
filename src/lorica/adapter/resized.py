"""What PEFT writes beside trained rows, brought back to trained rows alone: whole matrices, where the vocabulary was
resized, and the rows of a tied head once more.

    embed_tokens.token_adapter.trainable_tokens_delta    the trained rows: kept
    embed_tokens.token_adapter.base_layer.weight         the whole matrix: must be this base's, trained rows aside
    lm_head.weight                                       untied: the rows that differ from this base's are kept
    lm_head.token_adapter...                             tied: the same again, dropped

The base has to have the tokens added, whatever values their rows started from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorica.adapter.file import AdapterFile
from lorica.errors import AdapterError, LoricaError
from lorica.methods.token_rows import END, SUFFIX, placed
from lorica.models import sites as sites_of


def settled(model: nn.Module, file: AdapterFile) -> AdapterFile:
    """The same adapter by the sites of this base, with trained rows alone.

    AdapterError where a tensor of the file is not of this base's shape, or a matrix not this base's.
    """
    file = _unpacked(model, file)
    beside = any(key.endswith(".token_adapter.base_layer.weight") for key in file.tensors)
    twice = sum(key.endswith(END) for key in file.tensors) > 1
    return _Settling(model, file).result() if file.peft and (beside or twice) else file


def _unpacked(model: nn.Module, file: AdapterFile) -> AdapterFile:
    """What PEFT has in one tensor, by the sites of this base."""
    if not file.peft:
        return file
    (method,) = file.methods
    try:
        return replace(file, tensors=method.unpacked(file.tensors, file.config, sites_of(model)))
    except LoricaError as error:
        raise AdapterError.of([f"{file.where}: {line}" for line in str(error).splitlines()]) from error


class _Settling:
    def __init__(self, model: nn.Module, file: AdapterFile) -> None:
        (self.method,) = file.methods
        self.file = file
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.first = {id(value): name for name, value in model.named_parameters()}
        own = [self._module(key) for key in file.tensors if key.endswith(END) and self._own(key)]
        asked = placed(file.config.get("trainable_token_indices"), own)
        self.tokens: dict[str, tuple[int, ...]] = dict(asked) if isinstance(asked, Mapping) else {}

    def result(self) -> AdapterFile:
        tensors = dict(self._kept())
        config = {**self.file.config, "trainable_token_indices": self.tokens} if self.tokens else self.file.config
        return replace(self.file, config=config, tensors=tensors)

    def _kept(self) -> Iterator[tuple[str, Tensor]]:
        for key, tensor in self.file.tensors.items():
            name = self.method.site_name(key)
            matrix = name in self.parameters and tensor.dim() == 2 and self.parameters[name].dim() == 2
            if key.endswith(END) and not self._own(key):
                self._require_same_rows(key, tensor)
            elif key.endswith(".base_layer.weight") and matrix:
                self._differing(key, tensor)
            elif key.endswith(".weight") and matrix and not self._saved_whole(name) and ".lora_" not in key:
                yield from self._rows_of(key, tensor)
            else:
                yield key, tensor

    def _module(self, key: str) -> str:
        return self.method.site_name(key).removesuffix(".weight")

    def _own(self, key: str) -> bool:
        """Whether the parameter is known by this name, rather than tied to one that is."""
        name = self.method.site_name(key)
        return name not in self.parameters or self.first.get(id(self.parameters[name])) == name

    def _saved_whole(self, name: str) -> bool:
        return any(name.rpartition(".")[0].endswith(saved) for saved in self.file.config.get("modules_to_save") or ())

    def _require_same_rows(self, key: str, tensor: Tensor) -> None:
        name = self.method.site_name(key)
        first = self.first.get(id(self.parameters[name]), "").removesuffix(".weight")
        rows = {self._module(k): t for k, t in self.file.tensors.items() if k.endswith(END)}
        kept = rows.get(first)
        if kept is None or not torch.equal(kept, tensor):
            raise AdapterError(f"{self.file.where}: {key}: tied here, and the file trains it by itself")

    def _rows_of(self, key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        rows = self._differing(key, tensor)
        if rows:
            module = self._module(key)
            self.tokens[module] = tuple(rows)
            yield key.removesuffix(".weight") + SUFFIX, tensor[rows]

    def _differing(self, key: str, tensor: Tensor) -> list[int]:
        """The rows of a whole matrix that are not this base's; they must be those of trained tokens."""
        name = self.method.site_name(key)
        held = self.parameters[name].detach()
        if held.is_meta:
            raise AdapterError(f"{self.file.where}: brings its own {name}; merge it in memory, with load(...).merge()")
        held = held.cpu()
        if tensor.shape != held.shape:
            raise AdapterError(
                f"{self.file.where}: its {name} has {len(tensor)} rows, this base's {len(held)}; add its tokens first: "
                "lorica.add_tokens(model, [...])"
            )
        narrow = min(tensor.dtype, held.dtype, key=lambda dtype: dtype.itemsize)
        rows = (tensor.to(narrow) != held.to(narrow)).any(1).nonzero().flatten().tolist()
        if not {token for tokens in self.tokens.values() for token in tokens}.issuperset(rows):
            raise AdapterError(
                f"{self.file.where}: {key}: the file brings its own {name}, which is not this base's; choose the base "
                "that it names"
            )
        return rows
