"""Full fine-tuning: every parameter has a trainable copy.  The reference that every other method is compared with."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lorica.errors import TargetError
from lorica.methods.contract import Copy, Edit, Instead, Method
from lorica.site import Site


class Full(Method):
    """W' is a free copy of W for every parameter of the base."""

    kind: ClassVar[str] = "full"
    batchable: ClassVar[bool] = False

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        edits = tuple(Instead(site, Copy) for site in sites if site.kind == "parameter")
        if not edits:
            raise TargetError("full: this base has no parameters to train")
        return edits

    def advice(self) -> str:
        return "learning rate for full fine-tuning: start at 2e-5, a tenth of LoRA's"
