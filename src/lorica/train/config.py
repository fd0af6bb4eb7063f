"""How a run learns: the `train:` part of a recipe."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _number(value: Any) -> Any:
    """YAML reads `2e-4` and `1e3` as text; true and false are no numbers."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a number") from None
    return value


def _number_or_word(value: Any) -> Any:
    return value if value in ("epoch", True, False) else _number(value)


Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Every = Annotated[Literal["epoch"] | Annotated[int, Field(ge=1)], BeforeValidator(_number_or_word)]
Layers = Annotated[bool | Annotated[int, Field(ge=1)], BeforeValidator(_number_or_word)]


class OptimizerConfig(BaseModel):
    """AdamW: theta -= lr (m / (sqrt(v) + eps) + weight_decay theta), the decay on matrices alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adamw"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0


class TrainConfig(BaseModel):
    """What a run does with its data.

    epochs | steps                  the length of the run; 3 epochs when neither is given
    rows_per_step | tokens_per_step the size of an optimiser step, 32 rows when neither is given; tokens_per_step is a
                                    ceiling on real tokens
    micro_batch_tokens              bounds memory, and changes results by rounding alone
    schedule                        from learning_rate down to min_lr_ratio of it (constant: not at all)
    warmup                          a share of the steps (below 1) or a number of them
    clip                            largest norm of the whole gradient; null: none
    patience                        evaluations without a better loss after which the run stops; null: never
    evaluate_every, checkpoint_every    steps, or `epoch`
    keep_checkpoints                how many of the newest stay
    gradient_checkpointing          recompute blocks in the backward pass: all, or the first n
    base_dropout                    the base's own dropout too, which draws from torch's global generator
    tensorboard                     scalars in the run folder, beside metrics.jsonl
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Positive | None = None
    steps: Count | None = None
    rows_per_step: Count | None = None
    tokens_per_step: Count | None = None
    micro_batch_tokens: Count = 8192
    learning_rate: Positive = 2e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: NotNegative = 0.03
    min_lr_ratio: Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)] = 0.1
    optimizer: OptimizerConfig = OptimizerConfig()
    clip: Positive | None = 1.0
    patience: Count | None = None
    evaluate_every: Every = "epoch"
    checkpoint_every: Every = 200
    keep_checkpoints: Count = 2
    gradient_checkpointing: Layers = False
    base_dropout: bool = False
    tensorboard: bool = False
    seed: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, value: Any) -> Any:
        """What is trained when neither of two is given; an optimizer's name stands for its mapping."""
        if not isinstance(value, Mapping):
            return value
        given = dict(value)
        if given.get("epochs") is None and given.get("steps") is None:
            given["epochs"] = 3
        if given.get("rows_per_step") is None and given.get("tokens_per_step") is None:
            given["rows_per_step"] = 32
        if isinstance(given.get("optimizer"), str):
            given["optimizer"] = {"name": given["optimizer"]}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        problems = [
            f"{first} and {second} are two answers to one question; give one of them"
            for first, second in (("epochs", "steps"), ("rows_per_step", "tokens_per_step"))
            if getattr(self, first) is not None and getattr(self, second) is not None
        ]
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            problems.append(f"warmup: {self.warmup} is neither a share below 1 nor a whole number of steps")
        if problems:
            raise ValueError("; ".join(problems))
        return self
