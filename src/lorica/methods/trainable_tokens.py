"""Trainable tokens: rows of an embedding are trained, and nothing else.      PEFT's TRAINABLE_TOKENS

    W'[t] = rows[t] for the tokens t named, W' = W elsewhere

As an entry beside LoRA, `LoRA(trainable_token_indices=...)` does the same in one adapter that PEFT reads.
"""

from collections.abc import Collection, Container, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from lorica.errors import RecipeError, TargetError
from lorica.methods import peft_config, token_rows
from lorica.methods.contract import Edit, Instead, Method
from lorica.methods.token_rows import END, TokenRows, Tokens
from lorica.site import Site

PREFIX = "base_model.model."
UNDERSTOOD = frozenset({"token_indices", "target_modules", "init_weights"})


class TrainableTokens(Method):
    """Rows of embeddings.

    token_indices   the tokens whose rows are trained
    target_modules  the embeddings; empty: the input embedding, and with it whatever is tied to it
    """

    kind: ClassVar[str] = "trainable_tokens"
    peft_type: ClassVar[str | None] = "TRAINABLE_TOKENS"
    batchable: ClassVar[bool] = False

    token_indices: Tokens = ()
    target_modules: tuple[str, ...] = ()

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        rows, problems = token_rows.chosen(self._asked(), sites, "token_indices")
        if not self.token_indices:
            problems.append("trainable_tokens: token_indices is empty; name the tokens whose rows are trained")
        if problems:
            raise TargetError.of(problems)
        return tuple(Instead(site, partial(TokenRows, tokens)) for site, tokens in rows)

    def _asked(self) -> Tokens | dict[str, Tokens]:
        return dict.fromkeys(self.target_modules, self.token_indices) if self.target_modules else self.token_indices

    def note(self, edit: Edit) -> str:
        return f"{len(self.token_indices)} rows"

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        return token_rows.remarks(self._asked(), sites)

    def file_name(self, edit: Edit, parameter: str, around: Container[str]) -> str:
        return PREFIX + edit.site.name.removesuffix(".weight") + END

    @classmethod
    def site_name(cls, key: str) -> str:
        return key.removeprefix(PREFIX).removesuffix(END) + ".weight"

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        (shape,) = shapes.values()
        return Site(name=name, kind="parameter", shape=(token_rows.least_rows(self.token_indices), shape[1]))

    def repeated(self, tensors: Mapping[str, Tensor], sites: tuple[Site, ...]) -> dict[str, Tensor]:
        """PEFT keeps the rows of a tied head under the head's own name as well."""
        rows = tensors.get(f"{PREFIX}{token_rows.input_embedding(sites)}{END}")
        return {} if rows is None else {f"{PREFIX}{head}{END}": rows for head in token_rows.tied_heads(sites)}

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        modules = [edit.site.name.removesuffix(".weight") for edit in edits]
        return {
            "peft_type": self.peft_type,
            "token_indices": list(self.token_indices),
            "target_modules": modules,
            "init_weights": True,
        }

    @classmethod
    def from_peft(cls, config: Any, sites: tuple[Site, ...] = ()) -> "TrainableTokens":
        """The `peft.TrainableTokensConfig` (or a dict of its fields); PEFT may have written a path into it."""
        given = peft_config.fields(config)
        named = given.get("target_modules")
        one = isinstance(named, str) and peft_config.LITERAL.fullmatch(named)
        targets, problems = peft_config.names([named] if one else named, "target_modules")
        return cls._translated(given, targets, problems)

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> "TrainableTokens":
        """Which embeddings is read off the tensors."""
        modules = sorted(cls.site_name(key).removesuffix(".weight") for key in keys if key.endswith(END))
        return cls._translated(config, tuple(modules), [])

    @classmethod
    def _translated(cls, given: Mapping[str, Any], targets: tuple[str, ...], problems: list[str]) -> "TrainableTokens":
        problems = [*problems, *peft_config.problems(given, UNDERSTOOD)]
        tokens = given.get("token_indices") or ()
        if not all(isinstance(token, int) for token in tokens):
            problems.append(f"token_indices: expected a list of numbers, found {tokens!r}")
        if problems:
            raise RecipeError.of(problems)
        return cls(token_indices=tuple(tokens), target_modules=targets)
