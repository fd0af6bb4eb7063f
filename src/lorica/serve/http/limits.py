"""What one client may take: bytes, seconds and requests."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """body_bytes, body_seconds       of a request's body, until it is there
    header_bytes, header_seconds   of its head
    depth                          of nested JSON
    requests, connections          open at once; more requests get 429, more connections 503
    max_tokens                     that a request may ask for, and that a chat writes at most where it asks for none
    documents                      prompts times n of one request
    inputs                         texts of one request for embeddings or classes
    seconds                        of a whole request, from its head to its last byte
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    header_bytes: int = 16 << 10
    header_seconds: float = 10.0
    depth: int = 32
    requests: int = 512
    connections: int = 1024
    max_tokens: int = 4096
    documents: int = 32
    inputs: int = 2048
    seconds: float = 600.0
