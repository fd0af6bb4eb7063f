"""What a row says to token ids and the mask of what is learned.

    [bos]  prompt  completion  [eos]          pieces are encoded apart, so that the prompt's tokens are those that
      .      .         x         x            generation will see, whatever the completion begins with

Texts longer than the limit L become windows that share one token, so that each token but the very first is a label
exactly once:  window k = tokens[k (L - 1) : k (L - 1) + L],  its first token being context only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorica.data.chat import Spoken, learns, spoken, whole
from lorica.data.config import LossOn
from lorica.data.example import LabelMask, TokenIds
from lorica.data.faces import Renderer, Tokenizer
from lorica.data.shapes import Chat, Pair, Text, Turns

EMPTY = {Text: "empty text", Pair: "empty completion", Chat: "no turn of the assistant to learn"}


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is learned or not; `ends` puts the end token, learned likewise, after it."""

    text: str
    learned: bool
    ends: bool = False


@dataclass(frozen=True)
class Speech:
    """The pieces of one row; `begins` puts the begin token, where the tokenizer has one, before them."""

    pieces: tuple[Piece, ...]
    begins: bool = True


@dataclass(frozen=True)
class Encoded:
    ids: TokenIds
    labels: LabelMask


def says_nothing(turns: Turns) -> str | None:
    """Why a row has nothing to learn; None when it has."""
    match turns:
        case Text(text):
            silent = not text
        case Pair(completion=completion):
            silent = not completion
        case Chat(messages=messages):
            silent = not any(learns(turns, number) for number in range(len(messages)))
    return EMPTY[type(turns)] if silent else None


def speech(turns: Turns, renderer: Renderer, begins: bool, loss_on: LossOn) -> Speech:
    """The pieces of a row. A template writes its own begin token, unless `begins`. Raises `DataError`."""
    everything = loss_on == "all"
    match turns:
        case Text(text):
            return Speech((Piece(text, learned=True, ends=True),))
        case Pair(prompt, completion):
            return Speech((Piece(prompt, learned=everything), Piece(completion, learned=True, ends=True)))
        case Chat():
            said = whole(turns, renderer) if everything else spoken(turns, renderer)
            return Speech(tuple(_pieces(said)), begins)


def _pieces(said: Spoken) -> Iterator[Piece]:
    """What is said alternates between shown and learned; nothing after the last learned span matters."""
    done = 0
    for start, end in said.spans:
        yield Piece(said.text[done:start], learned=False)
        yield Piece(said.text[start:end], learned=True, ends=not said.ended)
        done = end


class Encoder:
    """Pieces to tokens with one tokenizer, many rows at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.lead = _lead(tokenizer)

    def __call__(self, rows: Sequence[Speech]) -> list[Encoded]:
        """One result a row. Tokenizers that offer `encode_batch` are called once for all of them."""
        texts = [text for row in rows for text in self._texts(row)]
        ids = iter(self._encode(texts))
        return [self._assembled(row, [next(ids) for _ in row.pieces]) for row in rows]

    def _texts(self, row: Speech) -> Iterator[str]:
        started = False
        for piece in row.pieces:
            yield self.lead + piece.text if started and piece.text else piece.text
            started = started or bool(piece.text)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        batch = getattr(self.tokenizer, "encode_batch", None)
        if batch is None:
            return [self.tokenizer.encode(text) for text in texts]
        return [list(getattr(each, "ids", each)) for each in batch(list(texts))]

    def _assembled(self, row: Speech, encoded: Sequence[Sequence[int]]) -> Encoded:
        ids: list[int] = []
        labels: list[bool] = []
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for piece, tokens in zip(row.pieces, self._without_lead(row, encoded), strict=True):
            ids += tokens
            labels += [piece.learned] * len(tokens)
            if piece.ends and eos is not None and ids[-1:] != [eos]:
                ids.append(eos)
                labels.append(piece.learned)
        if row.begins and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
            labels.insert(0, False)
        labels[:1] = [False] * len(labels[:1])
        return Encoded(np.array(ids, dtype=np.int32), np.array(labels, dtype=np.bool_))

    def _without_lead(self, row: Speech, encoded: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        if not self.lead:
            yield from encoded
            return
        lead = self.tokenizer.encode(self.lead)
        for piece, text, tokens in zip(row.pieces, self._texts(row), encoded, strict=True):
            if len(text) == len(piece.text):
                yield tokens
            elif list(tokens[: len(lead)]) == lead:
                yield tokens[len(lead) :]
            else:
                yield self.tokenizer.encode(piece.text)


def _lead(tokenizer: Tokenizer) -> str:
    """ "\\n" for tokenizers that put a blank before every text, "" for the others.

    SentencePiece vocabularies (Llama 2, Mistral) read "42" as " 42" at the start of a text. Behind a line's end they
    do not, so a completion is encoded there and the line's end taken off again.
    """
    alone, behind = list(tokenizer.encode("a")), list(tokenizer.encode("\na"))
    line = list(tokenizer.encode("\n"))
    return "\n" if behind[: len(line)] == line and behind[len(line) :] != alone else ""


def windows(encoded: Encoded, limit: int) -> Iterator[Encoded]:
    """Windows (at most `limit` tokens each) of a text, which share one token with the one before."""
    last = max(len(encoded.ids) - 1, 1)
    for start in range(0, last, limit - 1):
        labels = encoded.labels[start : start + limit].copy()
        labels[:1] = False
        yield Encoded(encoded.ids[start : start + limit], labels)
