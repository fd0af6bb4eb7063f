"""The matrix as a value: which adapter on which base, and how its file is written.

cases() -> Case(family, option, seed)      an option turns a family into a config of PEFT, or None where it has no
                                           such part
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from campaign.interop.families import FAMILIES, WIDTH, Family

MIXES = 4
"""Cases of every family that draw several options at once."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One adapter of PEFT, apart from its base.

    config     fields of peft.LoraConfig
    tied       the base's head is tied to its embeddings
    stored     how its file is written, a name in `stored.WAYS`
    adapters   names of the adapters in one model of PEFT; the last is the one that is meant
    refused    words by which our `load` may refuse the adapter; None: it must load
    config_refused   words by which `LoRA.from_peft` may refuse the config, when the file must load
    """

    config: Mapping[str, Any]
    tied: bool = False
    stored: str = "as PEFT saves it"
    adapters: tuple[str, ...] = ("default",)
    refused: str | None = None
    config_refused: str | None = None


@dataclass(frozen=True)
class Case:
    family: Family
    option: str
    seed: int
    setting: Setting = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.family.name}/{self.option}" + (f"/{self.seed}" if self.option == "mixed" else "")


Draw = random.Random
Option = Callable[[Family, Draw], Setting | None]


def cases(seed: int = 0) -> Iterator[Case]:
    for family in FAMILIES.values():
        for option, make in OPTIONS.items():
            for number in range(MIXES if option == "mixed" else 1):
                setting = make(family, random.Random(f"{seed}:{family.name}:{option}:{number}"))
                if setting is not None:
                    yield Case(family, option, number, setting)


def sample(seed: int = 0) -> list[Case]:
    """Every option once, families in turn, and every family at least once."""
    waiting = list(FAMILIES)
    random.Random(seed).shuffle(waiting)
    table = {(case.family.name, case.option): case for case in cases(seed) if case.seed == 0}
    chosen = []
    for option in OPTIONS:
        family = next(name for name in waiting if (name, option) in table)
        waiting.remove(family)
        waiting.append(family)
        chosen.append(table[family, option])
    seen = {case.family.name for case in chosen}
    return chosen + [table[name, "attention"] for name in FAMILIES if name not in seen]


def _low_rank(family: Family, draw: Draw, **more: Any) -> dict[str, Any]:
    """Ranks and alphas differ, and no scale is one."""
    r = draw.randint(2, 5)
    targets = list(family.attention)
    basis = {"r": r, "lora_alpha": r + draw.randint(3, 9), "target_modules": targets, "task_type": family.task}
    return {**basis, "fan_in_fan_out": family.transposed, **more}


def _with(**more: Any) -> Option:
    return lambda family, draw: Setting(config=_low_rank(family, draw, **more))


def _refused(words: str, **more: Any) -> Option:
    return lambda family, draw: Setting(config=_low_rank(family, draw, **more), refused=words)


def _stored(way: str) -> Option:
    return lambda family, draw: Setting(config=_low_rank(family, draw, modules_to_save=[family.norm]), stored=way)


def _mlp(family: Family, draw: Draw) -> Setting:
    return Setting(config=_low_rank(family, draw, target_modules=list(family.mlp)))


def _patterns(family: Family, draw: Draw, **more: Any) -> Setting:
    ranks = {family.path: 6, family.mlp[1]: 3}
    alphas = {family.attention[0]: 17, family.mlp[0]: 5}
    targets = [*family.attention, *family.mlp]
    config = _low_rank(family, draw, target_modules=targets, rank_pattern=ranks, alpha_pattern=alphas, **more)
    return Setting(config=config)


def _overlapping_patterns(family: Family, draw: Draw) -> Setting:
    """The first that matches counts, and PEFT sorts the keys when it saves: its file may not say what it held."""
    names = sorted([family.path, family.path.rpartition(".")[2]], reverse=True)
    ranks = dict(zip(names, (6, 3), strict=True))
    config = _low_rank(family, draw, target_modules=[*family.attention, *family.mlp], rank_pattern=ranks)
    return Setting(config=config, refused="by this base and adapter_config.json")


def _regex_pattern(family: Family, draw: Draw) -> Setting:
    pattern = {rf".*\.1\..*{family.attention[0]}": 6}
    return Setting(config=_low_rank(family, draw, rank_pattern=pattern), refused="rank_pattern")


def _bias_all(family: Family, draw: Draw) -> Setting | None:
    return Setting(config=_low_rank(family, draw, bias="all")) if family.biases else None


def _bias_of_adapted(family: Family, draw: Draw) -> Setting | None:
    targets = [*family.attention, family.mlp[0]]
    config = _low_rank(family, draw, bias="lora_only", target_modules=targets)
    return Setting(config=config) if family.biases else None


def _bias_and_norm(family: Family, draw: Draw) -> Setting | None:
    config = _low_rank(family, draw, bias="all", modules_to_save=[family.norm])
    return Setting(config=config) if family.biases else None


def _layers(family: Family, draw: Draw) -> Setting:
    return Setting(config=_low_rank(family, draw, layers_to_transform=[1]), config_refused="layers_to_transform")


def _excluded(family: Family, draw: Draw) -> Setting:
    config = _low_rank(family, draw, target_modules=[*family.attention, *family.mlp], exclude_modules=[family.path])
    return Setting(config=config, config_refused="exclude_modules")


def _regex(family: Family, draw: Draw) -> Setting:
    targets = rf".*\.1\..*({'|'.join(name.rpartition('.')[2] for name in family.attention)})"
    return Setting(config=_low_rank(family, draw, target_modules=targets), config_refused="regular expression")


def _full_path(family: Family, draw: Draw) -> Setting:
    return Setting(config=_low_rank(family, draw, target_modules=[family.path, family.mlp[1]]))


def _all_linear(family: Family, draw: Draw) -> Setting:
    """PEFT's rank on a classifier of three outputs may be beyond it where it does not know of the task."""
    config = _low_rank(family, draw, target_modules="all-linear")
    return Setting(config=config, config_refused="beyond" if family.task is None else None)


def _embedding(family: Family, draw: Draw, tied: bool = False) -> Setting | None:
    if family.embed is None or (tied and not family.tieable):
        return None
    return Setting(config=_low_rank(family, draw, target_modules=[family.embed, *family.attention]), tied=tied)


def _head(family: Family, draw: Draw, tied: bool = False) -> Setting | None:
    """LoRA on the head itself; a task would have PEFT train the heads of classifiers whole."""
    if family.head is None or (tied and not family.tieable):
        return None
    task = family.task if family.tieable else None
    targets = [family.low_rank_head or family.head, *family.attention]
    config = _low_rank(family, draw, target_modules=targets, task_type=task)
    return Setting(config={**config, "r": 2}, tied=tied)  # classifiers have three outputs


def _beyond(family: Family, draw: Draw) -> Setting:
    config = _low_rank(family, draw, rank_pattern={family.path: WIDTH + 8})
    return Setting(config=config, config_refused="beyond")


def _positions(family: Family, draw: Draw) -> Setting | None:
    if family.positions is None:
        return None
    config = _low_rank(family, draw, target_modules=[family.positions, *family.attention])
    return Setting(config=config, refused=family.positions if family.own_positions else None)


def _head_saved(family: Family, draw: Draw, tied: bool = False) -> Setting | None:
    if family.head is None or (tied and not family.tieable):
        return None
    config = _low_rank(family, draw, modules_to_save=[family.head])
    return Setting(config=config, tied=tied, config_refused="tied" if tied or family.always_tied else None)


def _embedding_saved(family: Family, draw: Draw, tied: bool = False) -> Setting | None:
    if family.embed is None or (tied and not family.tieable):
        return None
    config = _low_rank(family, draw, modules_to_save=[family.embed])
    return Setting(config=config, tied=tied, config_refused="tied" if tied or family.shared else None)


def _stretched(setting: Setting | None) -> Setting | None:
    return None if setting is None else replace(setting, config={**setting.config, "use_dora": True})


def _kept_tied(setting: Setting | None) -> Setting | None:
    if setting is None:
        return None
    config = {**setting.config, "ensure_weight_tying": True}
    return replace(setting, config=config, config_refused="ensure_weight_tying")


def _norm_saved(family: Family, draw: Draw) -> Setting:
    return Setting(config=_low_rank(family, draw, modules_to_save=[family.norm]))


def _tokens(family: Family, draw: Draw) -> Setting | None:
    if family.embed is None:
        return None
    rows = {family.embed: [3, 5, 8, 13, 21, 34, 55]}
    return Setting(config=_low_rank(family, draw, trainable_token_indices=rows), refused="trainable_token")


def _convolution(family: Family, draw: Draw) -> Setting | None:
    if family.convolution is None:
        return None
    config = _low_rank(family, draw, target_modules=[family.convolution, *family.attention])
    return Setting(config=config, refused=family.convolution)


def _one_of_two(family: Family, draw: Draw) -> Setting:
    return Setting(config=_low_rank(family, draw, modules_to_save=[family.norm]), adapters=("default", "other"))


def _name_of_a_module(family: Family, draw: Draw) -> Setting:
    return Setting(config=_low_rank(family, draw), adapters=(family.attention[0].rpartition(".")[2],))


def _mixed(family: Family, draw: Draw) -> Setting:
    """Several options at once, drawn."""
    names = [*family.attention, *family.mlp]
    targets = draw.sample(names, draw.randint(2, 4))
    config = _low_rank(family, draw, target_modules=targets, use_rslora=draw.random() < 0.5)
    config["rank_pattern"] = {name: draw.randint(2, 7) for name in targets if draw.random() < 0.4}
    config["alpha_pattern"] = {name: draw.randint(2, 19) for name in targets if draw.random() < 0.4}
    if family.biases:
        config["bias"] = draw.choice(["none", "all", "lora_only"])
    if draw.random() < 0.5:
        config["modules_to_save"] = [family.norm]
    config["lora_dropout"] = draw.choice([0.0, 0.1])
    adapters = draw.choice([("default",), ("lora",)])
    return Setting(config=config, adapters=adapters, stored=draw.choice(["as PEFT saves it", "float16", "bfloat16"]))


OPTIONS: dict[str, Option] = {
    "attention": _with(),
    "mlp": _mlp,
    "all-linear": _all_linear,
    "rslora": _with(use_rslora=True),
    "patterns": _patterns,
    "patterns with rslora": lambda family, draw: _patterns(family, draw, use_rslora=True),
    "patterns that overlap": _overlapping_patterns,
    "patterns that are no names": _regex_pattern,
    "bias all": _bias_all,
    "bias of adapted layers": _bias_of_adapted,
    "bias all and a norm": _bias_and_norm,
    "layers_to_transform": _layers,
    "exclude_modules": _excluded,
    "regular expression": _regex,
    "full path": _full_path,
    "dropout": _with(lora_dropout=0.2, init_lora_weights="gaussian"),
    "embedding": _embedding,
    "embedding, tied": lambda family, draw: _embedding(family, draw, tied=True),
    "embedding, kept tied": lambda family, draw: _kept_tied(_embedding(family, draw, tied=True)),
    "head": _head,
    "head, tied": lambda family, draw: _head(family, draw, tied=True),
    "head, kept tied": lambda family, draw: _kept_tied(_head(family, draw, tied=True)),
    "rank beyond the layer": _beyond,
    "positions": _positions,
    "head saved": _head_saved,
    "head saved, tied": lambda family, draw: _head_saved(family, draw, tied=True),
    "head saved, kept tied": lambda family, draw: _kept_tied(_head_saved(family, draw, tied=True)),
    "embedding saved": _embedding_saved,
    "embedding saved, tied": lambda family, draw: _embedding_saved(family, draw, tied=True),
    "embedding saved, kept tied": lambda family, draw: _kept_tied(_embedding_saved(family, draw, tied=True)),
    "norm saved": _norm_saved,
    "trainable tokens": _tokens,
    "convolution": _convolution,
    "DoRA": _with(use_dora=True),
    "DoRA, rsLoRA, biases": _with(use_dora=True, use_rslora=True, bias="lora_only"),
    "DoRA, embedding": lambda family, draw: _stretched(_embedding(family, draw)),
    "bias on B": _refused("lora_bias", lora_bias=True),
    "PiSSA": _refused("init_lora_weights", init_lora_weights="pissa"),
    "one of two adapters": _one_of_two,
    "adapter named as a module": _name_of_a_module,
    "stored in float16": _stored("float16"),
    "stored in bfloat16": _stored("bfloat16"),
    "adapter's name in the keys": _stored("adapter's name in the keys"),
    "keys without prefix": _stored("keys without prefix"),
    "keys of a compiled model": _stored("keys of a compiled model"),
    "mixed": _mixed,
}
