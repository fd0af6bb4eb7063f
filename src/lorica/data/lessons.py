"""Rows to examples under one config, so that read = used + dropped, each drop with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorica.data.config import DataConfig, ShapeName
from lorica.data.dataset import Dataset
from lorica.data.encode import Encoded, Encoder, Speech, says_nothing, speech, windows
from lorica.data.example import Dropped, Example
from lorica.data.faces import Renderer, Tokenizer
from lorica.data.problems import Problems
from lorica.data.rows import Row
from lorica.data.shapes import recognise, understand
from lorica.data.template import own_renderer
from lorica.errors import DataError

AT_ONCE = 1024
UNLEARNED = "no token to learn"
CUT_AWAY = "no token to learn once cut to the limit"


@dataclass
class Ledger:
    """What became of the rows so far. A text of many windows takes as many row ids, every other row one."""

    examples: list[Example] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    next_row: int = 0

    def use(self, row: Row, parts: Sequence[Encoded], cut: bool = False) -> None:
        for number, part in enumerate(parts, 1):
            origin = row.origin if len(parts) == 1 else f"{row.origin}#{number}"
            self.examples.append(Example(part.ids, part.labels, self.next_row, origin, cut=cut))
            self.next_row += 1

    def drop(self, row: Row, reason: str) -> None:
        self.dropped.append(Dropped(self.next_row, row.origin, reason))
        self.next_row += 1


class Lessons:
    """One config with its tokenizer and template: turns lists of rows into data sets."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, renderer: Renderer | None, limit: int) -> None:
        if config.max_length is not None and config.max_length > limit:
            raise DataError(f"data.max_length: {config.max_length} is above the {limit} tokens that the base allows")
        self.config = config
        self.limit = config.max_length or limit
        if self.limit < 2:
            raise DataError(f"data.max_length: {self.limit} leaves nothing to learn; two tokens are the least")
        self.encoder = Encoder(tokenizer)
        # A stated template writes its own begin token; the default one leaves it to the encoder.
        self.begins = renderer is None and config.template is None
        self.renderer = _renderer(config, tokenizer, renderer)

    def dataset(self, rows: Sequence[Row], what: str, source: object = "") -> Dataset:
        """Every row used or dropped. Raises `DataError` with every row that cannot be understood."""
        if not rows:
            raise DataError(f"{what}: there are no rows{f' in {source}' if source else ''}")
        problems, ledger = Problems(), Ledger()
        shape = self.config.shape or first_shape(rows)
        for start in range(0, len(rows), AT_ONCE):
            self._enter(rows[start : start + AT_ONCE], shape, ledger, problems)
        problems.report()
        return Dataset(tuple(ledger.examples), tuple(ledger.dropped), len(rows), shape)

    def _enter(self, rows: Sequence[Row], shape: ShapeName, ledger: Ledger, problems: Problems) -> None:
        read = [self._read(row, shape, problems) for row in rows]
        encoded = iter(self.encoder([each for each in read if isinstance(each, Speech)]))
        for row, each in zip(rows, read, strict=True):
            if isinstance(each, Speech):
                self._fit(row, next(encoded), shape, ledger, problems)
            else:
                ledger.drop(row, each)

    def _read(self, row: Row, shape: ShapeName, problems: Problems) -> Speech | str:
        """What a row says, or why it is dropped."""
        if row.refused:
            return row.refused
        try:
            if self.config.shape is None and (found := recognise(row.fields)) != shape:
                raise DataError(f"a {found} row among {shape} rows; keep one shape, or state data.shape")
            turns = understand(row.fields, shape)
            return says_nothing(turns) or speech(turns, self.renderer, self.begins, self.config.loss_on)
        except DataError as problem:
            problems.add(row.origin, problem)
            return "not understood"

    def _fit(self, row: Row, encoded: Encoded, shape: ShapeName, ledger: Ledger, problems: Problems) -> None:
        """Use a row as it is, in windows or cut, or drop it: it never grows shorter without a count."""
        length = len(encoded.ids)
        if not encoded.labels.any():
            ledger.drop(row, UNLEARNED)
        elif length <= self.limit:
            ledger.use(row, [encoded])
        elif shape == "text":
            ledger.use(row, list(windows(encoded, self.limit)))
        elif self.config.over_length == "truncate":
            self._cut(row, encoded, ledger)
        else:
            if self.config.over_length == "error":
                problems.add(row.origin, f"{length} tokens, more than {self.limit}; shorten it or drop what is longer")
            ledger.drop(row, f"longer than {self.limit} tokens")

    def _cut(self, row: Row, encoded: Encoded, ledger: Ledger) -> None:
        part = Encoded(encoded.ids[: self.limit].copy(), encoded.labels[: self.limit].copy())
        if part.labels.any():
            ledger.use(row, [part], cut=True)
        else:
            ledger.drop(row, CUT_AWAY)


def first_shape(rows: Sequence[Row]) -> ShapeName:
    """The shape of the first row that has one; raises that of the first row's `DataError` when none has."""
    refusal: DataError | None = None
    for row in rows:
        if row.refused:
            continue
        try:
            return recognise(row.fields)
        except DataError as problem:
            refusal = refusal or DataError(f"{row.origin}: {problem}")
    if refusal is None:
        return "text"
    raise refusal


def _renderer(config: DataConfig, tokenizer: Tokenizer, renderer: Renderer | None) -> Renderer:
    if config.template is not None:
        return own_renderer(tokenizer, config.template)
    return renderer or own_renderer(tokenizer)
