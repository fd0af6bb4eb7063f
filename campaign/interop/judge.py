"""One case judged by outputs, in both directions.

theirs -> here   PEFT's adapter, saved; loaded by `lorica`: PEFT's outputs
here -> theirs   an adapter made here, saved; loaded by PEFT with no key missing or left over: our outputs
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from campaign.interop.cases import Case
from campaign.interop.stored import TENSORS, rewritten
from lorica import adapter
from lorica.adapter import Attached
from lorica.errors import LoricaError

MOVED = 0.1
"""What an adapter must change of the largest output at least: one that does nothing cannot pass."""
NOISE = 0.15
"""Standard deviation: s B A is then about as large as the weights of a base, so that no softmax saturates."""
HARMLESS = (
    "Setting `save_embedding_layers` to `True`",
    "Could not find a config file",
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
    "fan_in_fan_out is set to True but the target module is",
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one case in one direction.

    moved      change of the outputs by the adapter, of the largest
    error      distance of both sides' outputs, of the largest
    bound      what rounding explains
    refusal    the error by which our side said no
    control    what was broken on purpose
    unmade     the error by which PEFT itself could not build or run the adapter
    """

    case: Case
    way: Literal["theirs -> here", "here -> theirs"]
    moved: float | None = None
    error: float | None = None
    bound: float | None = None
    refusal: str | None = None
    unmade: str | None = None
    control: str | None = None
    faults: tuple[str, ...] = ()

    @property
    def outcome(self) -> Literal["equal", "refused", "wrong", "not in PEFT"]:
        if self.faults:
            return "wrong"
        if self.unmade is not None:
            return "not in PEFT"
        return "equal" if self.refusal is None else "refused"


def judged(case: Case, bases: Path, work: Path) -> tuple[Verdict, ...]:
    """`bases` keeps the checkpoints of bases; `work` is an empty folder for the adapters of this case."""
    with _only_ours():
        try:
            folder, expected = _made_by_peft(case, work / "theirs")
        except Exception as error:
            told = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            return (Verdict(case=case, way="theirs -> here", unmade=told),)
        return _here(case, folder, expected, bases), _there(case, folder, bases, work / "ours")


def _made_by_peft(case: Case, work: Path) -> tuple[Path, Tensor]:
    """The folder of PEFT's adapter, and its outputs."""
    model = _with_peft(case)
    folder = _saved_by_peft(case, model, work)
    if case.setting.stored in ("float16", "bfloat16"):
        model, _ = _read_by_peft(case, folder)
    return folder, _outputs(case, model)


def _here(case: Case, folder: Path, expected: Tensor, bases: Path) -> Verdict:
    before = _outputs(case, case.family.model(case.setting.tied))
    base = case.family.loaded(bases, case.setting.tied)
    untouched = _outputs(case, base)
    try:
        attached = adapter.load(base, folder)
    except LoricaError as error:
        return _refusal(case, "theirs -> here", str(error).replace(str(folder), "adapter"), case.setting.refused)
    verdict = _compared(case, "theirs -> here", base, before, expected, _outputs(case, attached))
    left = _outputs(case, attached.detach())
    more = () if torch.equal(left, untouched) else ("detach does not give back the base",)
    return _with_faults(verdict, more)


def _there(case: Case, folder: Path, bases: Path, ours: Path) -> Verdict:
    """Made here from PEFT's config; where that says what we refuse, what PEFT saved is loaded and saved again."""
    base = case.family.loaded(bases, case.setting.tied)
    before = _outputs(case, base)
    try:
        attached = _made_here(case, base)
    except LoricaError as error:
        refusal = _refusal(case, "here -> theirs", str(error), case.setting.config_refused or case.setting.refused)
        if refusal.faults or case.setting.config_refused is None or case.setting.refused is not None:
            return refusal
        attached = adapter.load(base, folder)
    expected = _outputs(case, attached)
    attached.save(ours)
    try:
        model, faults = _read_by_peft(case, ours)
        theirs = _outputs(case, model)
    except Exception as error:
        return Verdict(case=case, way="here -> theirs", faults=(f"PEFT cannot use it: {str(error)[-200:]}",))
    verdict = _compared(case, "here -> theirs", base, before, theirs, expected)
    return _with_faults(verdict, faults)


def _made_here(case: Case, base: nn.Module) -> Attached:
    attached = adapter.attach(base, _config(case))
    add_noise(attached.named_parameters(), case.seed)
    return attached


def _compared(case: Case, way: Any, base: nn.Module, before: Tensor, expected: Tensor, found: Tensor) -> Verdict:
    moved, error, bound = distance(expected, before), distance(found, expected), rounding(base)
    faults = []
    if not moved > MOVED:
        faults.append(f"the adapter moves outputs by {moved:.2g} only")
    if not error <= bound:
        faults.append(f"outputs differ by {error:.2g}, rounding explains {bound:.2g}")
    return Verdict(case=case, way=way, moved=moved, error=error, bound=bound, faults=tuple(faults))


def _refusal(case: Case, way: Any, told: str, words: str | None) -> Verdict:
    """A refusal is right where the case allows one and the error names what it is about, in one line a problem."""
    faults = []
    if words is None:
        faults.append(f"refused: {told}")
    elif words not in told:
        faults.append(f"refused without naming {words!r}: {told}")
    return Verdict(case=case, way=way, refusal=told, faults=tuple(faults))


def _with_faults(verdict: Verdict, more: tuple[str, ...]) -> Verdict:
    return Verdict(**{**vars(verdict), "faults": (*verdict.faults, *more)})


def _config(case: Case) -> peft.LoraConfig:
    return peft.LoraConfig(**deepcopy(dict(case.setting.config)))  # PEFT appends to the lists it is given


def _with_peft(case: Case) -> Any:
    """PEFT's adapters on the base, noise in every trained tensor; the last one is active."""
    first, *others = case.setting.adapters
    torch.manual_seed(case.seed)  # PEFT draws its starting values from the global generator
    model: Any = peft.get_peft_model(case.family.model(case.setting.tied), _config(case), adapter_name=first)
    for name in others:
        model.add_adapter(name, _config(case))
    for number, name in enumerate(case.setting.adapters):
        model.set_adapter(name)
        add_noise([(n, p) for n, p in model.named_parameters() if p.requires_grad], case.seed + 100 * number)
    return model.eval()


def _saved_by_peft(case: Case, model: Any, folder: Path) -> Path:
    """The folder of the adapter that is meant: PEFT gives those not called `default` folders of their own."""
    name = case.setting.adapters[-1]
    model.save_pretrained(folder, selected_adapters=[name])
    place = folder if name == "default" else folder / name
    rewritten(place, case.setting.stored)
    return place


def _read_by_peft(case: Case, folder: Path) -> tuple[Any, tuple[str, ...]]:
    """PEFT's model of an adapter folder, and the keys that it missed or had no place for."""
    base: Any = case.family.model(case.setting.tied)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
        keys = peft.set_peft_model_state_dict(model, load_file(folder / TENSORS))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    faults = [f"PEFT warns: {each.message}" for each in told if _is_about_the_adapter(each)]
    faults += [f"PEFT has no place for {key}" for key in keys.unexpected_keys]
    faults += [f"PEFT misses {key}" for key in keys.missing_keys if key in trained]
    return model, tuple(faults)


def _is_about_the_adapter(warning: warnings.WarningMessage) -> bool:
    ignorable = (FutureWarning, DeprecationWarning)
    return not issubclass(warning.category, ignorable) and not str(warning.message).startswith(HARMLESS)


def _outputs(case: Case, model: Any) -> Tensor:
    with torch.no_grad():
        return case.family.reads(model(**case.family.inputs()))


@contextmanager
def _only_ours() -> Iterator[None]:
    """What PEFT and transformers tell each other while PEFT's side is made is not judged."""
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("transformers").setLevel(level)


def add_noise(parameters: Any, seed: int) -> None:
    """Each parameter's noise is drawn from its name."""
    with torch.no_grad():
        for name, parameter in parameters:
            generator = torch.Generator().manual_seed(crc32(f"{seed}:{name}".encode()))
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))


def rounding(model: nn.Module) -> float:
    """float32: each sum of K terms errs by about sqrt(K) eps of its size, and a pass is a chain of such sums."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    longest = max(p[0].numel() for p in matrices)
    return torch.finfo(torch.float32).eps * longest**0.5 * len(matrices)


def distance(y: Tensor, reference: Tensor) -> float:
    """Relative to the largest value compared."""
    return float((y - reference).abs().max() / reference.abs().max())
