"""Attached: the handle on one adapter in place on a base.  The model is used as before; the handle trains and saves.

attach / load  ->  Attached  --save-->    an adapter folder
                             --detach-->  the base, byte for byte and object for object
                             --merge-->   a plain model whose weights include the adapter
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorica.adapter import lineage, merge, norms
from lorica.adapter.effect import inert, not_finished, unfinished, without_effect
from lorica.adapter.file import AdapterFile, write
from lorica.adapter.finished import finished
from lorica.adapter.installed import Installed, Modules, Undo, undone
from lorica.adapter.lineage import Parent
from lorica.adapter.manifest import Ground
from lorica.adapter.origin import base_facts
from lorica.adapter.plan import Plan
from lorica.adapter.proof import Comparison, Proof, Prover, Unprobed, recorded
from lorica.adapter.rates import Rates, parameter_groups
from lorica.errors import AdapterError, did_you_mean
from lorica.kernels.elsewhere import Store
from lorica.methods.contract import Life
from lorica.models import checkpoint
from lorica.models.ambient import Clock


class UnfinishedWarning(UserWarning):
    """An adapter was saved that is not yet what its method ends with."""


class Attached:
    """One adapter on one base.

    attached(...), attached.generate(...)    the adapted model, called as the model itself is
    attached.parameters()                    what an optimiser takes
    attached.save("out/")                    the adapter folder, as PEFT reads it
    attached.detach(), attached.merge()      the end of the handle: later use is an AdapterError
    """

    def __init__(self, edits: Installed, clock: Clock, undos: Sequence[Undo]) -> None:
        self.plan: Plan = edits.plan
        self.modules: Modules = edits.modules
        self.clock = clock
        self.merged: Comparison | None = None
        """How far the merged model answers from the adapted one, after `merge` on a base that can be probed."""
        self._model: nn.Module | None = edits.model
        self._edits = edits
        self._undos = [*undos, _saved_as_adapter(edits.model, self)]
        self._end = ""
        self._life = _lives(self.plan, self.modules)
        self._prover = Prover(edits)
        self._origin: AdapterFile | None = None

    @property
    def model(self) -> nn.Module:
        """The base with the adapter in place."""
        if self._model is None:
            raise AdapterError(f"this adapter was {self._end}; attach or load it again")
        return self._model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.model.generate(*args, **kwargs)  # type: ignore[operator]

    def __repr__(self) -> str:
        state = f", {self._end}" if self._model is None else ""
        names = "+".join(method.kind for method in self.plan.methods)
        return f"Attached({names}, {len(self.modules)} sites, {self.trainable_parameters:,} parameters{state})"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by its key in the adapter file; a parameter that sites share comes once."""
        seen: set[int] = set()
        for key, parameter in self._keyed():
            if isinstance(parameter, nn.Parameter) and id(parameter) not in seen:
                seen.add(id(parameter))
                yield key, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def parameter_groups(
        self,
        learning_rate: float,
        *,
        lora_plus_ratio: float | None = None,
        lr_embedding: float | None = None,
        learning_rates: Mapping[str, float] | None = None,
        weight_decay: float = 0.0,
    ) -> list[dict[str, Any]]:
        """What an optimiser of torch takes when not everything learns at one rate; `weight_decay` is of matrices.

        lora_plus_ratio     B and vectors learn at this many times `learning_rate`, which is A's
        lr_embedding        the rate of low-rank pairs around embeddings under a ratio; 1e-6 when none is given
        learning_rates      factors by a glob over names such as `model.layers.0.self_attn.q_proj.A`
        """
        rates = Rates(
            learning_rate=learning_rate,
            lora_plus_ratio=lora_plus_ratio,
            lr_embedding=lr_embedding,
            learning_rates=learning_rates,
        )
        return parameter_groups(rates, self.plan, dict(self.named_parameters()), weight_decay)

    def _keyed(self) -> Iterator[tuple[str, Tensor]]:
        assert self.model is not None
        for planned in self.plan.edits:
            module = self.modules[planned.key]
            for key, tensor in planned.tensors.items():
                yield key, tensor.of(module)

    @property
    def trainable_parameters(self) -> int:
        return self.plan.trainable_parameters

    @property
    def total_parameters(self) -> int:
        return self.plan.total_parameters

    def print_trainable_parameters(self) -> None:
        """`trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622`"""
        print(
            f"trainable params: {self.trainable_parameters:,d} || all params: {self.total_parameters:,d} "
            f"|| trainable%: {self.plan.trainable_percent:.4f}"
        )

    def update_norms(self) -> dict[str, float]:
        """|| W' - W ||_F of every site by name: all zero before training, none should be afterwards."""
        return norms.update_norms(self.model, self.plan, self.modules)

    @property
    def life(self) -> Life | None:
        """`extra_loss` and `after_step` of all methods that have them, as one; None when none has."""
        return self._life

    def unfinished(self) -> str | None:
        """Why this is not yet what its method ends with (AdaLoRA above its budget); None where it may be used."""
        return unfinished(self.plan, dict(self._keyed()))

    def train(self, mode: bool = True, *, base: bool = True) -> "Attached":
        """Training mode, as torch means it.  With `base=False` the base stays in evaluation mode, its own dropout off,
        and only the adapter is switched."""
        if base:
            self.model.train(mode)
        for module in self.modules.values():
            module.train(mode)
        return self

    def eval(self) -> "Attached":
        return self.train(False)

    def checkpoint(self, layers: int | None = None, store: Store | None = None) -> Undo:
        """Recompute the first `layers` blocks in the backward pass instead of keeping their activations (None: all),
        until the returned undo is called or the adapter is taken off.  Their inputs wait in `store`, None: on the
        device."""
        undo = checkpoint(self.model, layers, store)
        self._undos.append(undo)
        return partial(self._take_back, undo)

    def _take_back(self, undo: Undo) -> None:
        if undo in self._undos:
            self._undos.remove(undo)
            undo()

    def state(self) -> dict[str, Tensor]:
        """All that the adapter file keeps, trained or not, by its key there, in the type it is trained in; the file of
        an adapter whose start is subtracted holds the two joined.

        The tensors share memory with the adapter's own: clone what must outlive the next step.
        """
        seen: set[int] = set()
        kept = {key: tensor for key, tensor in self._keyed() if not (id(tensor) in seen or seen.add(id(tensor)))}
        return {key: tensor.detach() for key, tensor in kept.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copies a state back.  AdapterError, and nothing copied, unless names and shapes are just this adapter's."""
        parameters = self.state()
        problems = [f"{key}: missing from the state" for key in parameters if key not in state]
        strange = sorted(state.keys() - parameters)
        problems += [f"{key}: not part of this adapter{did_you_mean(key, parameters)}" for key in strange]
        problems += [
            f"{key}: {tuple(state[key].shape)} in the state, {tuple(parameter.shape)} here"
            for key, parameter in parameters.items()
            if key in state and state[key].shape != parameter.shape
        ]
        if problems:
            raise AdapterError.of(problems)
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(state[key])

    @property
    def rewritten(self) -> bool:
        """Whether a file of this adapter holds other tensors than those that are trained."""
        file = AdapterFile.of(self.model, *finished(self.plan, self.modules))
        return _shapes(file.tensors) != _shapes(self.state())

    def start(self) -> dict[str, Tensor]:
        """The frozen tensors that starts bring along, by `SITE.PARAMETER`: given to `attach` as `statistics`, the same
        plan begins from the same again."""
        return {**self.plan.statistics, **self._frozen()}

    def _frozen(self) -> dict[str, Tensor]:
        return {
            f"{planned.site.name}.{part}": value
            for planned in self.plan.edits
            if hasattr(module := self.modules[planned.key], "start")
            for part, value in module.start().items()  # type: ignore[operator]
        }

    def load_start(self, start: Mapping[str, Tensor]) -> None:
        """Copies the tensors of `start` back into the modules that hold them."""
        for key, tensor in self._frozen().items():
            if key in start:
                tensor.copy_(start[key])

    def file(self) -> AdapterFile:
        """The adapter as a file holds it, in memory: the tensors cloned."""
        plan, tensors = finished(self.plan, self.modules)
        return AdapterFile.of(self.model, plan, {key: tensor.clone() for key, tensor in tensors.items()})

    def save(self, folder: str | Path, *, midway: bool = False, **facts: Any) -> Path:
        """Writes the adapter folder, whole or not at all, and returns its path.

        facts: what the folder's `lorica.json` says of where the adapter comes from, as JSON values: `recipe`, `data`
        (a fingerprint or more), `metrics`, `parents`.  The proof is taken once for the same weights: two forward passes
        of 16 tokens.  An adapter folder of that name is replaced; any other folder that is not empty is refused.
        RunError when a value is not finite or the disk refuses.

        An adapter that its method has not ended with is written, since it may be gone on from, and marked: the folder
        says so, `load` and `verify` refuse it, and a warning is given unless `midway`, as a run's checkpoints are.
        """
        reason = self.unfinished()
        if reason is not None and not midway:
            warnings.warn(f"{folder}: saved, but not finished: {reason}", UnfinishedWarning, stacklevel=2)
        facts = facts if reason is None else {"unfinished": reason, **facts}
        file = AdapterFile.of(self.model, *finished(self.plan, self.modules))
        ground = Ground.of(self.model)
        return write(folder, file, ground, lambda digest: {**self._lineage(digest), **facts}, self._prover.proof)

    def came_from(self, file: AdapterFile) -> None:
        """Notes the file these weights were loaded from: the parent of what they are trained into."""
        self._origin = file
        facts, here = (file.manifest or {}).get("base"), base_facts(self.model)
        same = isinstance(facts, Mapping) and all(facts.get(key) == here[key] for key in ("fingerprint", "hashed"))
        if file.digest and same:
            self._prover.know(file.digest, recorded(file.manifest))

    def _lineage(self, digest: str) -> dict[str, Any]:
        """Unchanged weights are the same adapter, with the parents it had."""
        origin = self._origin
        if origin is None:
            return lineage.facts("trained", ())
        if origin.digest == digest:
            kept = origin.manifest or {}
            return {name: kept[name] for name in ("made", "parents") if name in kept}
        return lineage.facts("continued", (Parent(origin.digest, origin.where),))

    def detach(self) -> nn.Module:
        """Takes the adapter off and returns the base, as it was before `attach`."""
        model = self.model
        self._finish("detached")
        return model

    def at_end(self, undo: Undo) -> None:
        """Called when the adapter is taken off or merged, the last one first."""
        if self._model is None:
            raise AdapterError(f"this adapter was {self._end}; attach or load it again")
        self._undos.append(undo)

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """The bare base for a while, the adapter back in its places afterwards."""
        model = self.model
        with self._edits.off():
            yield model

    def proof(self) -> Proof | Unprobed:
        """What base and adapter answer to the probe now: two forward passes of 16 tokens."""
        assert self.model is not None
        return self._prover.taken()

    def merge(self, *, untrained: bool = False, probed: bool = True) -> nn.Module:
        """Writes the adapter into the weights and returns the plain model.

        Sums are made in float32 or better and rounded once, to the weight's own type; the base's tensors themselves are
        not written, new ones take their place.  A weight that is tied and adapted in one place alone is untied.

        On a base that can be probed, `merged` then says how far the outputs moved; until it does, the weights that are
        replaced are kept beside the new ones.  `probed=False` leaves that out and lets go of each weight at once.

        AdapterError, and nothing changed, for edits that no weight can hold (bottlenecks, prefixes, prompts), an
        adapter without effect or not finished unless `untrained`, outputs that move by more than rounding, and an
        effect of which the rounding of the weights leaves less than half.
        """
        model = self.model
        merge.require_mergeable(self.plan, self.modules)
        if not untrained and self._inert():
            raise AdapterError(without_effect("merge"))
        if not untrained and (reason := self.unfinished()):
            raise AdapterError(not_finished("merge", reason))
        if probed:
            self.merged, swaps = merge.proven(self._edits, self._prover.taken(stored=False))
            self._finish("merged")
        else:
            self._finish("merged")
            swaps = merge.unproven(self._edits)
        swaps.settle()
        return model

    def _inert(self) -> bool:
        with self.off() as model:
            return inert(model, self.plan, self.modules)

    def _finish(self, end: str) -> None:
        undone(self._undos)
        self._model, self._end, self._undos = None, end, []


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


class Lives:
    """Several methods' lives, called as one."""

    def __init__(self, lives: Mapping[str, Life]) -> None:
        self.lives = lives

    def begin(self, total: int) -> None:
        for life in self.lives.values():
            life.begin(total)

    def extra_loss(self) -> Tensor | None:
        losses = [loss for life in self.lives.values() if (loss := life.extra_loss()) is not None]
        return sum(losses[1:], losses[0]) if losses else None

    def after_step(self, step: int, total: int) -> None:
        for life in self.lives.values():
            life.after_step(step, total)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{kind}.{key}": value for kind, life in self.lives.items() for key, value in life.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for kind, life in self.lives.items():
            own = {key.removeprefix(f"{kind}."): value for key, value in state.items() if key.startswith(f"{kind}.")}
            life.load_state_dict(own)


def _lives(plan: Plan, modules: Modules) -> Life | None:
    lives: dict[str, Life] = {}
    for index, method in enumerate(plan.methods):
        own = {p.site.name: modules[p.key] for p in plan.edits if p.method is method}
        if (life := method.life(own)) is not None:
            lives[f"{index}-{method.kind}"] = life
    return Lives(lives) if lives else None


def _saved_as_adapter(model: nn.Module, attached: Attached) -> Undo:
    """`model.save_pretrained` writes the adapter while one is in place: the model's own would name the tensors of
    edited modules as nothing that loads them expects, and they would come back newly initialised."""
    if not hasattr(model, "save_pretrained"):
        return lambda: None

    def save_pretrained(folder: str | Path, **unused: Any) -> None:
        """Writes the adapter folder; detach() or merge() first to save the model itself."""
        attached.save(folder)

    model.__dict__["save_pretrained"] = save_pretrained
    return lambda: model.__dict__.pop("save_pretrained")
