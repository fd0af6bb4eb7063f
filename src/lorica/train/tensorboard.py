"""The numbers of metrics.jsonl as TensorBoard scalars."""

from pathlib import Path
from typing import Any

from lorica.errors import RequestError
from lorica.train.records import EvalRecord, StepRecord
from lorica.train.reporter import Quiet


class TensorBoard(Quiet):
    """Writes event files to `folder`; steps made again are overwritten in the display (`purge_step`)."""

    def __init__(self, folder: Path, done_steps: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RequestError("train.tensorboard: is not installed; pip install 'lorica[track]'") from None
        self._writer = SummaryWriter(str(folder), purge_step=done_steps + 1)

    def on_step(self, record: StepRecord) -> None:
        self._scalars("train", record.to_dict(), record.step)

    def on_eval(self, record: EvalRecord) -> None:
        self._scalars("eval", record.to_dict(), record.step)

    def close(self) -> None:
        self._writer.close()

    def _scalars(self, part: str, values: dict[str, Any], step: int) -> None:
        groups = values.pop("learning_rates", {})
        by_group = {f"learning_rate/{label}": rate for label, rate in groups.items()}
        for name, value in {**values, **by_group}.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(f"{part}/{name.removeprefix('eval_')}", value, step)
