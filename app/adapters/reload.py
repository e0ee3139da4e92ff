"""Applies a changed settings file, mounted folder or secret to the running process."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

import watchfiles

from app.errors import ConfigError
from app.metrics import CONFIG_INFO, CONFIG_RELOADS
from config.live import Applied, Change, LiveSettings
from config.load import fingerprint

log = logging.getLogger(__name__)

OUTCOMES = ("applied", "restart_required", "unchanged", "rejected", "failed")

# An editor truncates, writes and renames within milliseconds: wait until the folder is quiet for a
# step, at most for the debounce.
STEP_MS = 50
DEBOUNCE_MS = 400
# The files are looked at in this interval even when the file system tells of nothing (network
# mounts, and what changes while the watch is being set up again). It costs one read of small files.
BACKSTOP_MS = 5_000
# A watch that polls sees times of files only, which some file systems keep by the second: look at the content.
POLL_MS = 1_000


class Reloader:
    """Watches what the settings were read from; one owner runs `run`.

    `watching` is set once changes are noticed from now on.
    """

    def __init__(self, live: LiveSettings) -> None:
        self._live = live
        self.watching = asyncio.Event()
        self._seen = _state(live.loaded.files)
        for outcome in OUTCOMES:
            CONFIG_RELOADS.labels(outcome)
        _publish_hash(fingerprint(live.current))

    async def run(self) -> None:
        """Apply changes until cancelled; return at once when no file was read."""
        polling = False
        while self._live.loaded.files:
            try:
                await self._follow(_folders(self._live.loaded.files), polling=polling)
            except OSError as error:
                if polling:
                    raise
                # Mostly the limit of inotify watches of the machine; polling needs none.
                log.warning(
                    "changes of the settings are polled for: %s", error, extra={"action": "config watch failed"}
                )
                polling = True

    async def check(self) -> str:
        """Reload when the content of a file differs from what was read last; return the outcome."""
        state = await asyncio.to_thread(_state, self._live.loaded.files)
        if state == self._seen:
            return "unchanged"
        self._seen = state
        return await self.reload()

    async def reload(self) -> str:
        """Read the sources again, validate the whole and apply it, or keep the old values and say why."""
        try:
            loaded = await asyncio.to_thread(self._live.loaded.again)
            applied = self._live.apply(loaded)
        except ConfigError as error:
            return _rejected(error)
        except Exception:
            CONFIG_RELOADS.labels("failed").inc()
            log.exception("the new settings could not be applied; the old ones stay", extra={"action": "config failed"})
            return "failed"
        return _applied(applied)

    async def _follow(self, folders: tuple[Path, ...], *, polling: bool) -> None:
        """Check on each event of the folders, until other folders are to be watched."""
        async with contextlib.aclosing(_events(folders, polling=polling)) as events:
            while _folders(self._live.loaded.files) == folders:
                # The next event is waited for before the files are read, so that no change falls between.
                event = asyncio.ensure_future(anext(events))
                try:
                    await asyncio.sleep(0)
                    await self.check()
                    if event.done():
                        event.result()  # raises when the watch could not be set up
                    self.watching.set()
                    if _folders(self._live.loaded.files) == folders:
                        await event
                finally:
                    event.cancel()
                    await asyncio.wait([event])


def _applied(applied: Applied) -> str:
    outcome = "applied" if applied.changed else "restart_required" if applied.restart_required else "unchanged"
    CONFIG_RELOADS.labels(outcome).inc()
    _publish_hash(applied.hash)
    if not applied:
        return outcome
    waiting = [change.key for change in applied.restart_required]
    text = "; ".join(f"{change.key}: {change.old!r} -> {change.new!r}" for change in applied.changed)
    log.info(
        "config reloaded: %s%s",
        text or "nothing changes while running",
        f"; needs a restart: {', '.join(waiting)}" if waiting else "",
        extra={
            "action": "config reloaded",
            "changed": _by_key(applied.changed),
            "restart_required": _by_key(applied.restart_required),
            "hash": applied.hash,
        },
    )
    return outcome


def _rejected(error: ConfigError) -> str:
    CONFIG_RELOADS.labels("rejected").inc()
    log.error(
        "the new settings are not valid and the old ones stay: %s",
        "; ".join(error.problems),
        extra={"action": "config rejected", "problems": list(error.problems)},
    )
    return "rejected"


def _events(folders: tuple[Path, ...], *, polling: bool) -> AsyncGenerator[object, None]:
    return watchfiles.awatch(
        *folders,
        watch_filter=None,  # the default one hides `..data`, the link a ConfigMap's swap replaces
        recursive=False,
        step=STEP_MS,
        debounce=DEBOUNCE_MS,
        rust_timeout=POLL_MS if polling else BACKSTOP_MS,
        yield_on_timeout=True,
        force_polling=polling or None,
    )


def _by_key(changes: Iterable[Change]) -> dict[str, dict[str, object]]:
    return {change.key: {"old": change.old, "new": change.new} for change in changes}


def _publish_hash(digest: str) -> None:
    CONFIG_INFO.clear()
    CONFIG_INFO.labels(digest).set(1)


def _folders(files: Iterable[Path]) -> tuple[Path, ...]:
    """The folders to watch: of each file as it is named, and of what a link leads to."""
    found: set[Path] = set()
    for file in files:
        for path in (file.absolute(), file.resolve()):
            found.add(path if path.is_dir() else path.parent)
    return tuple(sorted(folder for folder in found if folder.is_dir()))


def _state(files: Iterable[Path]) -> tuple[tuple[str, str], ...]:
    """A digest of each file; of a folder, of the files in it."""
    single = [inner for file in files for inner in (sorted(file.iterdir()) if file.is_dir() else [file])]
    return tuple((str(file), _digest(file)) for file in single if not file.is_dir())


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"
