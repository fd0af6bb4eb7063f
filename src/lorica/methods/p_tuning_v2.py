"""P-tuning v2: P learned keys and values at every layer, trained themselves.         Liu et al. 2022, arXiv:2110.07602

    K_l, V_l (P, K, E) free for every layer l      (prefix tuning without the MLP)

The file is PEFT's PREFIX_TUNING, as a prefix's is, and is read back as one without its MLP: the same computation.
"""

from typing import ClassVar

from lorica.methods.prefix import KeysValues


class PTuningV2(KeysValues):
    """Keys and values before those of every document.

    length          P, virtual tokens
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "p-tuning-v2"
    peft_names: ClassVar = {"num_virtual_tokens": "write length", "pre_seq_len": "write length"}

    def advice(self) -> str:
        return "learning rate for P-tuning v2: start at 5e-3"
