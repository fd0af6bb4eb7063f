"""What LoHa and LoKr share: their entries in PEFT's config.

Yeh et al. 2024, LyCORIS, arXiv:2309.14859
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from lorica.methods.contract import Edit
from lorica.methods.ranked import Ranked, plain_number
from lorica.site import Site

OTHER_DROPOUTS = ("rank_dropout", "module_dropout")


class Lycoris(Ranked):
    """`dropout` is on the input of the adapter; PEFT drops rows of the update or whole modules instead, so its file
    does not say it."""

    beyond_peft: ClassVar[tuple[str, ...]] = ("dropout",)
    peft_names: ClassVar[Mapping[str, str]] = dict.fromkeys(OTHER_DROPOUTS, "write dropout, on the adapter's input")
    translated: ClassVar[Mapping[str, str]] = {**Ranked.translated, "dropout": "dropout"}
    understood: ClassVar[frozenset[str]] = frozenset(
        {"rank_pattern", "alpha_pattern", *OTHER_DROPOUTS, "use_effective_conv2d", "rank_dropout_scale", "init_weights"}
    )

    dropout: float = Field(0.0, ge=0, lt=1)

    def peft_problems(self, edits: tuple[Edit, ...]) -> list[str]:
        transposed = [edit.site.name for edit in edits if edit.place == "around" and edit.site.transposed]
        none = [f"{name}: PEFT has no {self.kind} on transformers' Conv1D" for name in transposed]
        return [*super().peft_problems(edits), *none]

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        return {
            **self.where_entries(edits, sites),
            **self.rank_entries(edits),
            "alpha": plain_number(self.alpha),
            **dict.fromkeys(OTHER_DROPOUTS, 0.0),
            "use_effective_conv2d": False,
            "init_weights": True,
        }

    @classmethod
    def where_of_config(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[dict[str, Any], list[str]]:
        """What only matters while training is asked of a config and not of a file."""
        ours, problems = super().where_of_config(given, sites)
        problems += [
            f"{name}: {given[name]} has no counterpart here; {cls.peft_names[name]}"
            for name in OTHER_DROPOUTS
            if given.get(name)
        ]
        if given.get("init_weights", True) is not True:
            problems.append(f"init_weights: {given['init_weights']!r} has no counterpart here; leave it at True")
        return ours, problems
