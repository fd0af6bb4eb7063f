"""What only looks at data: the report of what its rows would teach."""

from lorica import data
from lorica.api.lessons import ANY_LENGTH
from lorica.data import DataConfig, DataReport
from lorica.errors import ModelError
from lorica.models import context_limit, load_tokenizer, renderer, shapes_only
from lorica.models.chat import plain_tokenizer


def data_report(file: str, model: str, *, held: str | None = None) -> DataReport:
    """What the rows of `file` would teach the base `model`, of which only shapes and the tokenizer are read."""
    tokenizer = load_tokenizer(model)
    if tokenizer is None:
        raise ModelError(f"{model}: brings no tokenizer")
    plain = plain_tokenizer(tokenizer)
    limit = context_limit(shapes_only(model)) or ANY_LENGTH
    train, evaluation = data.load(DataConfig(train=file, eval=held), plain, renderer(tokenizer), limit=limit)
    return DataReport.of(train, evaluation, plain)
