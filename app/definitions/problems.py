"""What is wrong with a definition, and where: every problem has its line, its field and one sentence."""

import difflib
from collections.abc import Iterable
from typing import Literal, NamedTuple

Path = tuple[str | int, ...]
Severity = Literal["error", "warning"]


class Problem(NamedTuple):
    """One sentence about one field. `line` and `column` count from 1; 0 when the definition came without text."""

    field: str
    message: str
    line: int = 0
    column: int = 0
    severity: Severity = "error"

    def at(self, name: str) -> str:
        """As it is shown for a file: `file:line:column field: message`."""
        place = f"{name}:{self.line}:{self.column}" if self.line else name
        said = f"{self.field}: {self.message}" if self.field else self.message
        return f"{place} {said}" if self.severity == "error" else f"{place} warning: {said}"


def dotted(path: Path) -> str:
    """A path as people write it: `tasks.worst.with.filter`, `triggers[0].cron`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean x?` when something known is near, else what is known when that is little."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 20 else ""
