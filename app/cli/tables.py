"""Tables of answers: fitted to a terminal, whole in a file or pipe."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from app.cli.options import console

if TYPE_CHECKING:
    from rich.text import Text

# Wide enough for every row: what reads a pipe wants no cut names.
_PIPE_COLUMNS = 10_000


def show_table(headings: Sequence[str], rows: "Iterable[Sequence[str | Text]]", title: str | None = None) -> None:
    """Print a table; a heading that begins with `>` is of numbers. Names in the first column are never cut.

    A cell is text as it is, or text with a style.
    """
    from rich import box  # noqa: PLC0415 - `--help` and `--json` need no tables
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    out = console()
    if not out.is_terminal:
        out.width = _PIPE_COLUMNS
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for number, heading in enumerate(headings):
        justify = "right" if heading.startswith(">") else "left"
        table.add_column(heading.removeprefix(">"), justify=justify, overflow="fold", no_wrap=number == 0)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            *(Text(cell) if isinstance(cell, str) else cell for cell in row)
        )  # as it is: brackets in a device's text are no markup
    out.print(table)
