"""transformers' Trainer over an attached model: its checkpoints hold the adapter, and resume and best model load it.

Trainer knows the models of transformers and of PEFT.  Of any other it writes every tensor of the base under the names
that edited modules give them, which no loader reads back; here a checkpoint has a folder `adapter/` instead, as the
folder of one of our own runs has.  A method with a life of its own gets its calls, and `life/` holds its state.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.adapter import Attached, read
from lorica.errors import CheckpointError, LoricaError, RequestError, RunError
from lorica.methods.contract import Life
from lorica.train import checkpoint as checkpoints

if TYPE_CHECKING:
    from torch import Tensor, nn

ADAPTER, TRAINED = "adapter", "trained"
_transformers: Any = import_module("transformers")
_Trainer: Any = _transformers.Trainer
"""Without its types, for which a type checker reads a thousand files of models."""


class Trainer(_Trainer):
    """`lorica.Trainer(attached, args=..., train_dataset=...)`: all else as in transformers."""

    def __init__(self, model: Attached, *arguments: Any, **options: Any) -> None:
        if not isinstance(model, Attached):
            raise RequestError(f"Trainer: give the handle of lorica.attach or lorica.load, not {type(model).__name__}")
        self.attached = model
        super().__init__(model.model, *arguments, **options)
        if model.life is not None:
            self.add_callback(_Calls(self, model.life))

    def training_step(self, *arguments: Any, **options: Any) -> "Tensor":
        """The extra loss of the method comes once, with the last micro-batch of an optimiser step."""
        loss = super().training_step(*arguments, **options)
        life = self.attached.life
        extra = life.extra_loss() if life is not None and self.accelerator.sync_gradients else None
        if extra is None:
            return loss
        self.accelerator.backward(extra)
        return loss + extra.detach().to(loss)

    def _save(self, output_dir: str | None = None, state_dict: "dict[str, Tensor] | None" = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        self.attached.save(folder / ADAPTER, midway=True, training_forwards=self.attached.clock.step)
        if held := self._beside():
            checkpoints.save(folder / TRAINED, self.state.global_step, held, {})
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))

    def _beside(self) -> "dict[str, dict[str, Tensor]]":
        """What to go on from, beyond what the adapter's file holds."""
        life = self.attached.life
        parts = {
            "adapter": self.attached.state() if self.attached.rewritten else {},
            "start": self.attached.start(),
            "life": {} if life is None else dict(life.state_dict()),
        }
        held = {name: {key: tensor.detach().cpu() for key, tensor in part.items()} for name, part in parts.items()}
        return {name: part for name, part in held.items() if part}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: "nn.Module | None" = None) -> None:
        self._restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._restore(Path(str(self.state.best_model_checkpoint)))

    def _restore(self, checkpoint: Path) -> None:
        """Dropout goes on where it was: its step is the number of training forwards made."""
        try:
            file, held = read(checkpoint / ADAPTER), _held_beside(checkpoint / TRAINED)
            self.attached.load_start(held.get("start", {}))
            self.attached.load_state(held.get("adapter", file.tensors))
            if self.attached.life is not None:
                self.attached.life.load_state_dict(held.get("life", {}))
        except LoricaError as error:
            raise CheckpointError(str(error)) from error
        self.attached.clock.step = int((file.manifest or {}).get("training_forwards", 0))


def _held_beside(folder: Path) -> "Mapping[str, Mapping[str, Tensor]]":
    if not folder.is_dir():
        return {}
    found, skipped = checkpoints.newest(folder)
    if found is None:
        raise CheckpointError("; ".join(f"{path}: {reason}" for path, reason in skipped) or f"{folder}: is empty")
    return found.tensors


class _Calls(_transformers.TrainerCallback):
    """The calls of a method with a life of its own, at the places that Trainer has for them."""

    def __init__(self, trainer: Trainer, life: Life) -> None:
        self.trainer, self.life = trainer, life

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.life.begin(state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Before gradients are cleared and before `global_step` counts this one; a step that float16 scaling skipped is
        none."""
        if not self.trainer.accelerator.optimizer_step_was_skipped:
            self.life.after_step(state.global_step + 1, state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if reason := self.trainer.attached.unfinished():
            raise RunError(f"step {state.global_step}: the run is over, and its adapter is not finished: {reason}")
