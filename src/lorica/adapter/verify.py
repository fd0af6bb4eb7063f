"""verify: whether an adapter folder still is what it says, and whether its base still answers as when it was saved.

    files -> format -> finite -> base -> tokenizer -> fit -> effect -> proof

A check that fails ends those that would stand on it.  Without lorica.json nothing was recorded, and the folder is
unverified however well it loads.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from lorica.adapter.attached import Attached
from lorica.adapter.effect import inert, without_effect
from lorica.adapter.file import AdapterFile, held, understood
from lorica.adapter.load import load
from lorica.adapter.manifest import tokenizer_facts
from lorica.adapter.origin import answers, judged
from lorica.adapter.proof import Proof, Record, compared, recorded
from lorica.adapter.tensors import finite
from lorica.errors import AdapterError, LoricaError, ModelError
from lorica.models import Probe, Reading, numerics
from lorica.models.numerics import rounding, threads_of

T = TypeVar("T")
Status = Literal["verified", "unverified", "failed"]


class Bare:
    """What is asked of the bare base; whoever verifies many adapters on one may remember it."""

    def reading(self, model: nn.Module, probe: Probe) -> Reading:
        return probe.read(model)

    def tokenizer(self, model: nn.Module) -> Mapping[str, str] | None:
        return tokenizer_facts(getattr(model, "tokenizer", None))


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked of one adapter.  `status` is "unverified" where nothing was recorded that could be checked."""

    adapter: str
    status: Status
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return self.status == "verified"

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        checks = [check.to_dict() for check in self.checks]
        return {"ok": self.ok, "status": self.status, "adapter": self.adapter, "checks": checks}

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"{self.adapter}: {self.status}"]
        for check in self.checks:
            first, *rest = check.detail.splitlines()
            lines.append(f"  {'ok ' if check.ok else 'NOT'} {check.name:<{width}}  {first}")
            lines += [f"{'':{width + 8}}{line}" for line in rest]
        return "\n".join(lines)


def verify(
    source: str | Path,
    base: Callable[[AdapterFile], nn.Module],
    *,
    untrained: bool = False,
    whole: Callable[[AdapterFile], str | None] | None = None,
    bare: Bare | None = None,
    fitted: Callable[[Attached], None] = lambda attached: None,
) -> Verification:
    """Checks the adapter of a folder or hub id on the base that `base` gives for it.

    untrained   an adapter without effect, or not finished, is accepted
    whole       gives the digest of every byte of the base, which is then compared with the recorded one
    fitted      is given the adapter as it stands on the base, before its outputs are compared

    The base is given back as it was.  RequestError where there is no such folder, ModelError where there is no base.
    """
    checks = _Checks(str(source), bare or Bare(), fitted)
    with suppress(_Failed):
        _files(checks, source, base, untrained, whole)
    return checks.result()


class _Failed(Exception):
    """What comes next stands on a check that failed."""


@dataclass(eq=False)
class _Checks:
    adapter: str
    bare: Bare
    fitted: Callable[[Attached], None]
    recorded: bool = True
    made: list[Check] = field(default_factory=list)

    def note(self, name: str, ok: bool, detail: str) -> bool:
        self.made.append(Check(name=name, ok=ok, detail=detail))
        return ok

    def need(self, name: str, ok: bool, detail: str) -> None:
        if not self.note(name, ok, detail):
            raise _Failed

    def tried(self, name: str, work: Callable[[], T]) -> T:
        """What `work` gives; an AdapterError is the failure of this check."""
        try:
            return work()
        except AdapterError as error:
            self.note(name, False, str(error))
            raise _Failed from error

    def result(self) -> Verification:
        failed = any(not check.ok for check in self.made if check.name != UNRECORDED)
        status: Status = "failed" if failed else "verified" if self.recorded else "unverified"
        return Verification(adapter=self.adapter, status=status, checks=tuple(self.made))


UNRECORDED = "record"


def _files(
    checks: _Checks,
    source: str | Path,
    base: Callable[[AdapterFile], nn.Module],
    untrained: bool,
    whole: Callable[[AdapterFile], str | None] | None,
) -> None:
    found = checks.tried("files", lambda: held(source))
    file = checks.tried("format", lambda: understood(found))
    if found.manifest is None:
        checks.recorded = False
        checks.note(UNRECORDED, False, "no lorica.json: written by others, so neither base nor outputs were recorded")
    else:
        checks.note("files", True, f"{len(found.manifest['files'])} files of the recorded sizes and SHA-256")
    checks.note("format", True, f"{' + '.join(m.kind for m in file.methods)}, {len(file.tensors)} tensors")
    bad = [key for key, tensor in file.tensors.items() if not finite(tensor)]
    checks.need("finite", not bad, f"{bad[0]} and {len(bad) - 1} more are not finite" if bad else "every value")
    model = base(file)
    if whole is not None:
        _every_byte(checks, file, whole(file))
    record = _record(file)
    with threads_of(record.numerics if isinstance(record, Proof) else {}):
        _on_base(checks, file, model, untrained)


def _every_byte(checks: _Checks, file: AdapterFile, found: str | None) -> None:
    facts: Mapping[str, Any] = (file.manifest or {}).get("base") or {}
    wanted = facts.get("digest")
    if wanted is None:
        checks.note("base, every byte", False, "no digest of every byte was recorded; now known, and saved from now on")
    else:
        same = found == wanted
        checks.note("base, every byte", same, f"SHA-256 {str(found)[:12]}" + ("" if same else f", was {wanted[:12]}"))


def _on_base(checks: _Checks, file: AdapterFile, model: nn.Module, untrained: bool) -> None:
    if file.manifest is not None:
        verdict = judged(file.manifest, model)
        checks.note("base", verdict.same is not False, verdict.reason)
        _words(checks, file.manifest, model)
    bare = _bare(checks, file, model)
    attached = checks.tried("fit", lambda: _fitted(model, file))
    try:
        checks.note("fit", True, f"{len(attached.plan.edits)} sites")
        checks.fitted(attached)
        _effect(checks, file, attached, untrained)
        _proof(checks, _record(file), attached, bare)
    finally:
        attached.detach()


def _fitted(model: nn.Module, file: AdapterFile) -> Attached:
    try:
        return load(model, file, trainable=False, untrained=True, other_base=True).eval()
    except LoricaError as error:
        raise AdapterError(str(error)) from error


def _words(checks: _Checks, manifest: Mapping[str, Any], model: nn.Module) -> None:
    then, now = manifest.get("tokenizer"), checks.bare.tokenizer(model)
    if not isinstance(then, Mapping):
        return
    if now is None:
        checks.note("tokenizer", False, "the base had one, and has none here")
        return
    library = (manifest.get("versions") or {}).get("tokenizers", "another")
    same = now["sha256"] == then.get("sha256")
    checks.note("tokenizer", same, "as it was" if same else f"changed (it was hashed by tokenizers {library})")
    same = now.get("chat_template") == then.get("chat_template")
    checks.note("chat template", same, "as it was" if same else "changed: prompts would be written another way")


def _record(file: AdapterFile) -> Record:
    return recorded(file.manifest)


def _bare(checks: _Checks, file: AdapterFile, model: nn.Module) -> Reading | None:
    """The bare base's answers, where there is something to compare them with."""
    record = _record(file)
    if not isinstance(record, Proof):
        return None
    try:
        probe = Probe.of(model)
        if probe.to_dict() != dict(record.probe):
            checks.note("base outputs", False, "the probe of this base is not the one that was recorded")
            return None
        bare = checks.bare.reading(model, probe)
    except ModelError as error:
        checks.note("base outputs", False, str(error))
        return None
    verdict = answers(record, model, bare)
    checks.note("base outputs", verdict.same is True, verdict.reason)
    return bare


def _effect(checks: _Checks, file: AdapterFile, attached: Attached, untrained: bool) -> None:
    copies = any(planned.edit.place == "instead" for planned in attached.plan.edits)
    with attached.off() if copies else nullcontext(attached.model) as model:
        without = inert(model, attached.plan, attached.modules)
    record = _record(file)
    without = without or (isinstance(record, Proof) and record.effect == 0)
    told = f"outputs move by {record.effect:.2%}" if isinstance(record, Proof) else "some update is not zero"
    checks.note("effect", untrained or not without, without_effect("it") if without else told)
    reason = attached.unfinished()
    if reason is not None:
        checks.note("finished", untrained, reason)


def _proof(checks: _Checks, record: Record, attached: Attached, bare: Reading | None) -> None:
    if not isinstance(record, Proof):
        if checks.recorded:
            checks.note("proof", True, f"no outputs were recorded: {record.reason}")
        return
    if bare is None:
        checks.note("proof", False, "not compared, since the base does not answer the recorded probe")
        return
    now = numerics(attached.model)
    adapted = checks.tried("proof", lambda: _answers(attached))
    allowed = rounding(attached.model, record.numerics, now)
    found = checks.tried("proof", lambda: compared(record, bare, adapted, now, allowed))
    broken = not found.drift and not found.equal
    checks.note("proof", found.ok, f"not equal to the bit under the same numerics: {found}" if broken else str(found))


def _answers(attached: Attached) -> Reading:
    try:
        return Probe.of(attached.model).read(attached.model)
    except ModelError as error:
        raise AdapterError(str(error)) from error
