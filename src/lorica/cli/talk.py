"""`lorica chat`: a loop of lines and answers, printed token by token."""

import sys

from lorica.cli.output import say


def talk(
    adapter: str, *, model: str | None, max_tokens: int, temperature: float, dtype: str | None, **accepted: bool
) -> None:
    """Reads lines until an empty one or the end of input; Ctrl-C stops an answer, and between answers the loop."""
    from lorica import api

    speaker = api.Speaker.of(adapter, model=model, dtype=dtype, **accepted)
    say(f"{speaker}\nan empty line ends")
    while line := _line():
        try:
            speaker.answer(line, max_tokens=max_tokens, temperature=temperature, on_text=_write)
        except KeyboardInterrupt:
            say(" (stopped)")
        print(flush=True)
        if speaker.forgotten:
            say(f"(no room for the earliest of the chat: {speaker.forgotten} of its exchanges forgotten)")


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
