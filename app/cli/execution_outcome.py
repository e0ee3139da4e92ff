"""How executions look in a terminal: their states, how long they took, and what became of one."""

from typing import TYPE_CHECKING, Any, Final

from app.cli.options import console

if TYPE_CHECKING:
    from rich.text import Text

FINAL: Final = frozenset({"succeeded", "failed", "cancelled", "timed_out", "skipped"})
STYLES: Final = {
    "queued": "cyan",
    "running": "blue",
    "retrying": "yellow",
    "waiting": "cyan",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "bold red",
    "timed_out": "red",
    "cancelled": "magenta",
    "skipped": "dim",
}


def outcome(found: dict[str, Any]) -> int:
    """The exit code of an execution that was waited for."""
    return 0 if found["status"] == "succeeded" else 1


def print_outcome(found: dict[str, Any]) -> None:
    """One line of what it is, and one of why it failed."""
    duration = took(found.get("duration_ms"))
    out = console()
    out.print(
        found["execution_id"],
        "",
        found["workflow"],
        found["version"],
        "",
        status_text(found["status"]),
        duration,
        markup=False,
    )
    if found.get("error"):
        where = f"{found['failed_task']}: " if found.get("failed_task") else ""
        out.print(f"  {where}{found['error']}", markup=False, style="red")


def status_text(status: str) -> "Text":
    """A state in its colour."""
    from rich.text import Text  # noqa: PLC0415 - `--json` needs no colours

    return Text(status, style=STYLES.get(status, ""))


def took(duration_ms: float | None) -> str:
    """A duration for people; a dash where it is not known."""
    if duration_ms is None:
        return "–"
    return f"{duration_ms:,.0f} ms" if duration_ms < 10_000 else f"{duration_ms / 1000:,.1f} s"
