"""Problems are collected while reading, so that one run shows them all."""

from dataclasses import dataclass, field

from lorica.errors import DataError

SHOWN = 20


@dataclass
class Problems:
    """Each is one line: file, line, field, and the remedy. Reading stops at the twentieth."""

    lines: list[str] = field(default_factory=list)

    def add(self, where: str, what: object) -> None:
        self.lines.append(f"{where}: {what}")
        if len(self.lines) == SHOWN:
            self.lines.append(f"stopped after {SHOWN} problems; there may be more")
            self.report()

    def report(self) -> None:
        """Raise `DataError` with every problem; do nothing when there is none."""
        if self.lines:
            raise DataError.of(self.lines)
