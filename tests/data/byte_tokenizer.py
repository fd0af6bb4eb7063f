"""The smallest tokenizer there is: a token is a byte, and two more begin and end a row."""


class Bytes:
    """Special tokens are read from the text as `<s>` and `</s>`, as tokenizers do."""

    bos_token_id: int | None = 256
    eos_token_id: int | None = 257

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(text.split("</s>")):
            ids += [257] if number else []
            for inner, piece in enumerate(part.split("<s>")):
                ids += ([256] if inner else []) + list(piece.encode())
        return ids

    def decode(self, ids) -> str:
        special = {256: b"<s>", 257: b"</s>"}
        return b"".join(special.get(i) or bytes([i]) for i in ids).decode("utf-8", "replace")


class NoBegin(Bytes):
    bos_token_id = None


class LeadingBlank(NoBegin):
    """Puts a blank before every text, as the vocabularies of Llama 2 and Mistral do."""

    def encode(self, text: str) -> list[int]:
        return super().encode(f"_{text}") if text else []


class Batching(Bytes):
    """Offers many texts at once, and counts how often it is asked."""

    calls = 0

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        self.calls += 1
        return [Bytes.encode(self, text) for text in texts]


def learned(tokenizer: Bytes, example) -> str:
    """The learned tokens of an example, as text."""
    return tokenizer.decode([int(i) for i in example.input_ids[example.labels]])


def whole(tokenizer: Bytes, example) -> str:
    return tokenizer.decode([int(i) for i in example.input_ids])
