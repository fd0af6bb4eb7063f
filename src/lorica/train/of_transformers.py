"""transformers' Trainer over an attached model: its checkpoints hold the adapter, and resume and best model load it.

Trainer knows the models of transformers and of PEFT.  Of any other it writes every tensor of the base under the names
that edited modules give them, which no loader reads back; here a checkpoint has a folder `adapter/` instead, as the
folder of one of our own runs has.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.adapter import Attached, read
from lorica.errors import CheckpointError, LoricaError, RequestError
from lorica.train import checkpoint as checkpoints

if TYPE_CHECKING:
    from torch import Tensor, nn

ADAPTER, TRAINED = "adapter", "trained"
_Trainer: Any = import_module("transformers").Trainer
"""Without its types, for which a type checker reads a thousand files of models."""


class Trainer(_Trainer):
    """`lorica.Trainer(attached, args=..., train_dataset=...)`: all else as in transformers."""

    def __init__(self, model: Attached, *arguments: Any, **options: Any) -> None:
        if not isinstance(model, Attached):
            raise RequestError(f"Trainer: give the handle of lorica.attach or lorica.load, not {type(model).__name__}")
        self.attached = model
        super().__init__(model.model, *arguments, **options)

    def _save(self, output_dir: str | None = None, state_dict: "dict[str, Tensor] | None" = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        self.attached.save(folder / ADAPTER, training_forwards=self.attached.clock.step)
        if self.attached.rewritten:
            parts = {"adapter": self.attached.state(), "start": self.attached.start()}
            held = {name: _held(part) for name, part in parts.items() if part}
            checkpoints.save(folder / TRAINED, self.state.global_step, held, {})
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: "nn.Module | None" = None) -> None:
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._restore(str(self.state.best_model_checkpoint))

    def _restore(self, checkpoint: str) -> None:
        """Dropout goes on where it was: its step is the number of training forwards made."""
        try:
            file = read(Path(checkpoint) / ADAPTER)
            beside = Path(checkpoint) / TRAINED
            trained = checkpoints.newest(beside)[0] if beside.is_dir() else None
            if trained is not None:
                self.attached.load_start(trained.tensors.get("start", {}))
            self.attached.load_state(file.tensors if trained is None else trained.tensors["adapter"])
        except LoricaError as error:
            raise CheckpointError(str(error)) from error
        self.attached.clock.step = int((file.manifest or {}).get("training_forwards", 0))


def _held(part: "dict[str, Tensor]") -> "dict[str, Tensor]":
    return {name: tensor.detach().cpu().contiguous() for name, tensor in part.items()}
