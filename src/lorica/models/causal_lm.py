"""The decoder with its head: called as transformers' models are, or as our trainer and engine do.

model(input_ids, attention_mask, labels) -> .loss, .logits     rows of a batch; padding is by mask, never by token id
model.hidden(tokens, layout), model.head                        flat documents; the loss of a task takes these
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorica.kernels import rounded, with_rows
from lorica.models import ambient
from lorica.models.branches import linear
from lorica.models.config import DecoderConfig
from lorica.models.decoder import Decoder
from lorica.models.layout import Layout

IGNORED = -100
"""The label of a position that is not learned, as everywhere in PyTorch."""


class CausalLM(nn.Module):
    """A decoder-family base.  `config` is transformers' own config, `tokenizer` what was loaded beside the weights."""

    loss_type = "ForCausalLM"
    """Labels are shifted here: Trainer then counts those that are predicted."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.shape = DecoderConfig.of(config)
        self.model = Decoder(self.shape)
        self.lm_head = nn.Linear(self.shape.d, self.shape.vocab, bias=False)
        if self.shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.tokenizer: Any = None
        self.generation_config: Any = None
        """What the base's authors say of generating with it, its stop tokens above all; None where they say nothing."""
        self.clock: ambient.Clock | None = None
        """Set while an adapter with dropout is attached: counts the training forwards made outside our trainer."""

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @property
    def head(self) -> nn.Module:
        return self.lm_head

    def hidden(self, tokens: Tensor, layout: Layout, places: Tensor | None = None) -> Tensor:
        """tokens (T,) int64 -> final hidden states (T, d), or (N, d) of the tokens at `places` (N,) alone."""
        if layout.apart:
            every = places is layout.last and len(layout.documents) == layout.total
            return self.model(tokens, layout, None if every else places)
        count = layout.total
        total = count if layout.cache is not None else rounded(count, self.model.norm.weight)
        if places is None:
            return self.model(with_rows(tokens, total), layout.filled(total))[:count]
        read = with_rows(places, rounded(len(places), self.model.norm.weight))
        return self.model(with_rows(tokens, total), layout.filled(total), read)[: len(places)]

    def logits(self, hidden: Tensor, layout: Layout) -> Tensor:
        """hidden (N, d) of any of the layout's tokens -> (N, vocabulary); `layout` matters to an edited head alone.

        In a pass that keeps documents apart they come in float32 or better, as the product has them.
        """
        return linear(self.lm_head, hidden, layout, widely=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **unsupported: Any,
    ) -> Any:
        """input_ids (B, S); attention_mask (B, S) 1 for real tokens; labels (B, S), shifted here, -100 not learned.

        Returns transformers' CausalLMOutput: logits (B, S, vocabulary), zero at padding, and the mean loss of the label
        tokens (their sum over `num_items_in_batch`, where given).
        """
        _refuse(unsupported)
        from transformers.modeling_outputs import CausalLMOutput

        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = mask.to(torch.bool)
        layout = self._layout(real)
        hidden = self.hidden(input_ids[real], layout)
        flat = self.logits(hidden, layout)
        logits = flat.new_zeros(*input_ids.shape, flat.shape[-1]).index_put((real.nonzero(as_tuple=True)), flat)
        loss = None if labels is None else _shifted_loss(logits, labels, num_items_in_batch)
        return CausalLMOutput(loss=loss, logits=logits)  # type: ignore[arg-type]

    def _layout(self, real: Tensor) -> Layout:
        """Every row of the batch is a document; the choice of a Bank and the noise of its row go to its tokens."""
        layout = Layout.of(real.sum(1).tolist(), device=real.device)
        entered = ambient.current.get()
        route = entered.route_of(len(real))
        if route is not None:
            layout = replace(layout, route=route[layout.document_of])
        noise = entered.noise
        if noise is None and self.training and self.clock is not None:
            noise = self.clock.tick(torch.arange(len(real), device=real.device))
        return layout if noise is None else layout.with_noise(noise.seed, noise.step, noise.rows)

    def activation_checkpointing_enable(self, **unused: Any) -> None:
        """Every block is recomputed in the backward pass; Trainer asks for it by this name."""
        self.model.recomputed_layers = len(self.model.layers)

    def activation_checkpointing_disable(self) -> None:
        self.model.recomputed_layers = 0

    def resize_token_embeddings(self, rows: int, **unused: Any) -> nn.Module:
        """As transformers' of that name; a new row is the mean of those there were.  Returns the embedding."""
        from lorica.models.vocabulary import resize

        resize(self, rows)
        return self.model.embed_tokens

    def save_pretrained(self, folder: str | Path, **unused: Any) -> None:
        """Writes the checkpoint folder that transformers, vLLM and `load_base` read.

        While an adapter is in place this name writes the adapter instead; merge it first to save the model with it.
        """
        from lorica.models.saving import save_base

        save_base(self, folder)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """As transformers' generate: rows (B, S) -> (B, S + new), finished rows filled with the end token."""
        from lorica.models.generate import generate_rows

        return generate_rows(self, input_ids, attention_mask, **options)


def _shifted_loss(logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = nn.functional.cross_entropy(
        wide[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss / (items if items is not None else (labels[:, 1:] != IGNORED).sum())


def _refuse(unsupported: dict[str, Any]) -> None:
    """Options of transformers' models that mean something else than the default are refused, not ignored."""
    from lorica.errors import ModelError

    asked = [name for name, value in unsupported.items() if name != "return_dict" and not _says_nothing(value)]
    if asked:
        raise ModelError(f"the decoder takes input_ids, attention_mask and labels, not {', '.join(sorted(asked))}")


def _says_nothing(value: Any) -> bool:
    """None, False or 0; a tensor says something whatever it holds."""
    return value is None or (isinstance(value, int) and not value)
