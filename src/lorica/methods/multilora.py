"""MultiLoRA: y = W x + sum_i c_i * (B_i A_i dropout(x)), i = 1 .. n.      Wang et al. 2023, arXiv:2311.11501

n LoRAs in parallel, each with a learned scale c_i (d_out) that starts at zero, so training starts at the base.  A_i
(r, d_in) and B_i (d_out, r) both start uniform in +-1/sqrt(columns).  Side by side they are one LoRA of rank n r:

    A (n r, d_in)      the A_i one below the other      B (d_out, n r)      the c_i * B_i one beside the other

The paper's abstract and summaries of it say: parallel LoRAs, learned scales, and starts that spread the update over
many singular values.  That a scale is a vector of d_out, and starts at zero, is the reading taken here.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from lorica.errors import AdapterError
from lorica.kernels import LowRank, site_id
from lorica.methods.contract import AroundLinear, Build, Edit, Keeps, Role, Start
from lorica.methods.on_layers import OnLayers
from lorica.methods.ranked import LARGEST_RANK
from lorica.site import Site


class MultiLoRA(OnLayers):
    """Parallel LoRAs with learned scales, for one adapter that learns many tasks at once.

    n, r            how many in parallel, and the rank of each: 3 and 8
    dropout         probability, on their common input alone
    target_modules  preset, list of names or glob
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "multilora"
    peft_names: ClassVar[Mapping[str, str]] = {"alpha": "leave it out, the scales are learned"}
    keys: ClassVar[Mapping[str, str]] = {"A": ".multilora_A", "B": ".multilora_B", "c": ".multilora_c"}

    n: int = Field(3, ge=1, le=1024)
    r: int = Field(8, ge=1, le=LARGEST_RANK)
    dropout: float = Field(0.0, ge=0, lt=1)

    def around(self, site: Site) -> Build:
        return lambda start: MultiLoRALinear(self, site, start)

    def kept_at(self, site: Site) -> Keeps:
        return Keeps(inputs=True, numbers=self.n * self.r, fuses=True)

    def role(self, edit: Edit, parameter: str, shape: tuple[int, ...]) -> Role:
        """The c are gains, n vectors side by side."""
        return "vector" if parameter == "c" and edit.place == "around" else super().role(edit, parameter, shape)

    def note(self, edit: Edit) -> str:
        return f"{self.n} x r={self.r}" if edit.place == "around" else ""

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        held = {self.end_of(key): shape for key, shape in shapes.items()}
        if None in held:
            return super().site_of_file(name, shapes)
        if not {".multilora_A", ".multilora_B"} <= held.keys():
            raise AdapterError(f"{name}: half of a low-rank pair is missing from the file")
        return Site(name=name, kind="linear", shape=(held[".multilora_B"][0], held[".multilora_A"][-1]))


class MultiLoRALinear(AroundLinear):
    def __init__(self, config: MultiLoRA, site: Site, start: Start) -> None:
        super().__init__()
        n, self.r = config.n, config.r
        self.A = start.uniform(site.d_in**-0.5, n * self.r, site.d_in)
        self.B = start.uniform(self.r**-0.5, site.d_out, n * self.r)
        self.c = start.zeros(site.d_out, n)
        self.dropout, self.site = config.dropout, site_id(site.name)

    def low_rank(self) -> LowRank:
        B = self.B * self.c.repeat_interleave(self.r, 1)
        return LowRank(A=self.A, B=B, scale=1.0, dropout=self.dropout, site=self.site)

    def merged(self, W: Tensor) -> Tensor:
        low_rank = self.low_rank()
        return W + low_rank.B.to(W.dtype) @ low_rank.A.to(W.dtype)
