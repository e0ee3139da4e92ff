"""A bar that tells how far a check is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.cli.options import console


@contextmanager
def progress_bar() -> "Iterator[Callable[[str, int, int], None]]":
    """A bar on stderr, on a terminal only; what is yielded is called with (what is under way, done, of how many)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    screen = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
