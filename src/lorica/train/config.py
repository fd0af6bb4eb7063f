"""How a run learns: the `train:` part of a recipe."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from lorica.adapter.rates import Rates
from lorica.train.numbers import AtLeastOne, Count, Every, Layers, NotNegative, Part, Positive, Seed, Size
from lorica.train.optimizers import ADAMW_RATE, OPTIMIZERS, Config, OptimizerConfig
from lorica.train.optimizers.adamw import AdamWConfig


class TrainConfig(BaseModel):
    """What a run does with its data.

    epochs | steps                  the length of the run; 3 epochs when neither is given
    rows_per_step | tokens_per_step the size of an optimiser step, 32 rows when neither is given; tokens_per_step is a
                                    ceiling on real tokens
    micro_batch_tokens              bounds memory, and changes results by rounding alone
    learning_rate                   at the peak of the schedule; none given: what is usual for the optimiser
    lora_plus_ratio                 LoRA+: learning_rate is A's, and B and vectors learn at this many times it
    lr_embedding                    LoRA+: of low-rank pairs around embeddings, 1e-6 when none is given
    learning_rates                  factors of the learning rate by a glob over names of tensors, such as `classifier.*`
                                    or `*.3.*.B`; the first that matches counts
    schedule                        from learning_rate down to min_lr_ratio of it (constant: not at all)
    warmup                          a share of the steps (below 1) or a number of them
    clip                            largest norm of the whole gradient; null: none
    patience                        evaluations without a better loss after which the run stops; null: never
    evaluate_every, checkpoint_every    steps, or `epoch`
    keep_checkpoints                how many of the newest stay
    gradient_checkpointing          recompute blocks in the backward pass: all, or the first n; auto: as many as memory
                                    demands; changes no bit of the results
    measure                         the gradients of the heaviest micro-batch are made before the first step and thrown
                                    away: a run that does not fit is refused at once; changes no bit of the results
    page_state                      how much of the optimiser's state is on the device, as in 500MB; the rest is in host
                                    memory, or where the device is the CPU in a file; null: all of it; changes no bit
    offload_activations             the inputs of recomputed blocks wait there too; changes no bit
    base_dropout                    the base's own dropout too, which draws from torch's global generator
    tensorboard                     scalars in the run folder, beside metrics.jsonl
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Positive | None = None
    steps: Count | None = None
    rows_per_step: Count | None = None
    tokens_per_step: Count | None = None
    micro_batch_tokens: Count = 8192
    learning_rate: Positive = ADAMW_RATE
    lora_plus_ratio: AtLeastOne | None = None
    lr_embedding: Positive | None = None
    learning_rates: dict[str, Positive] | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: NotNegative = 0.03
    min_lr_ratio: Part = 0.1
    optimizer: OptimizerConfig = AdamWConfig()
    clip: Positive | None = 1.0
    patience: Count | None = None
    evaluate_every: Every = "epoch"
    checkpoint_every: Every = 200
    keep_checkpoints: Count = 2
    gradient_checkpointing: Layers = "auto"
    measure: bool = True
    page_state: Size | None = None
    offload_activations: bool = False
    base_dropout: bool = False
    tensorboard: bool = False
    seed: Seed = 0

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
        if "optimizer" in given:
            given["optimizer"] = _named(given["optimizer"])
        if given.get("learning_rate") is None:
            given["learning_rate"] = _usual_rate(given.get("optimizer"))
        return given

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        problems = [
            f"{first} and {second} are two answers to one question; give one of them, null for the other"
            for first, second in (("epochs", "steps"), ("rows_per_step", "tokens_per_step"))
            if getattr(self, first) is not None and getattr(self, second) is not None
        ]
        if self.lr_embedding is not None and self.lora_plus_ratio is None:
            problems.append("lr_embedding is a part of LoRA+; give lora_plus_ratio beside it, or use learning_rates")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            problems.append(f"warmup: {self.warmup} is neither a share below 1 nor a whole number of steps")
        if self.offload_activations and self.gradient_checkpointing is False:
            problems.append(
                "offload_activations moves the inputs of recomputed blocks, and gradient_checkpointing: false "
                "recomputes none; leave either out"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def at_once(self, longest: int) -> int:
        """Tokens that are computed at a time at most, of rows no longer than `longest`."""
        return max(longest, min(self._step(longest), self.micro_batch_tokens))

    def accumulates(self, longest: int) -> bool:
        """Whether a step of such rows is computed in several parts."""
        return self._step(longest) > self.at_once(longest)

    def _step(self, longest: int) -> int:
        return self.rows_per_step * longest if self.rows_per_step else self.tokens_per_step or longest

    @property
    def rates(self) -> Rates:
        return Rates(
            learning_rate=self.learning_rate,
            lora_plus_ratio=self.lora_plus_ratio,
            lr_embedding=self.lr_embedding,
            learning_rates=self.learning_rates,
        )


def unevaluated(patience: int) -> str:
    return (
        f"train.patience: {patience} evaluations without a better loss, and nothing is evaluated; give rows to "
        "evaluate (data.eval), or leave patience out"
    )


def _named(optimizer: Any) -> Any:
    """A name stands for its mapping, and a mapping without one is AdamW's."""
    if isinstance(optimizer, str):
        return {"name": optimizer}
    return {"name": "adamw", **optimizer} if isinstance(optimizer, Mapping) else optimizer


def _usual_rate(optimizer: Any) -> float:
    """Of an optimiser that may yet be refused."""
    try:
        config = optimizer if isinstance(optimizer, Config) else OPTIMIZERS[optimizer["name"]][0](**optimizer)
    except (KeyError, TypeError, ValueError):
        return ADAMW_RATE
    if config.usual_rate is None:
        raise ValueError(f"learning_rate is missing, and {config.name} has no usual one for adapters; give it")
    return config.usual_rate
