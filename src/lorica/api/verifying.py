"""verify: an adapter folder on the base it records, in the numerics it records, as far as this machine has them."""

from pathlib import Path

from torch import nn

from lorica import adapter as rooms
from lorica.adapter import AdapterFile, Verification
from lorica.adapter.proof import recorded_dtype
from lorica.api.recorded import base_for, base_of
from lorica.errors import RequestError
from lorica.models.fingerprint import whole_digest
from lorica.models.folder import folder_of


def verify(
    adapter: str | Path,
    *,
    model: str | nn.Module | None = None,
    dtype: str | None = None,
    untrained: bool = False,
    full: bool = False,
) -> Verification:
    """Whether an adapter is whole, fits its base, and makes it answer as it did when it was saved.

    model       the base, where the one that the adapter records is not to be used
    dtype       the type to compute in; None: the recorded one, in which the answers are equal to the bit
    untrained   an adapter without effect, or not finished, is accepted
    full        every byte of the base is hashed as well, instead of blocks of each tensor

    `.ok` and `.checks`, each with name, ok and detail.  RequestError where there is no such folder or no base.
    """

    def base(file: AdapterFile) -> nn.Module:
        if isinstance(model, nn.Module):
            return model
        return base_for(file, model or base_of(adapter, file), dtype or recorded_dtype(file.manifest))

    def whole(file: AdapterFile) -> str | None:
        if isinstance(model, nn.Module):
            raise RequestError("verify: full reads the files of the base; give its folder or hub id as model")
        return whole_digest(folder_of(model or base_of(adapter, file)))

    return rooms.verify(adapter, base, untrained=untrained, whole=whole if full else None)
