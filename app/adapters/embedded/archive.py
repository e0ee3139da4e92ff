"""The class-data-sharing archive of a Java: made when the first broker stops, it cuts later starts by half."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from app.adapters.embedded.java import Java

log = logging.getLogger(__name__)


class SharedArchive:
    """One archive file, valid for one Java and one class path.

    The JVM itself ignores an archive that does not fit. A file appears only whole: the JVM writes
    beside it and `keep` renames after a clean exit.
    """

    def __init__(self, folder: Path, java: Java, class_path: Sequence[Path]) -> None:
        facts = "\n".join([str(java.program.resolve()), java.banner, *map(str, class_path)])
        self.path = folder / f"classes-java{java.version}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.jsa"
        self._fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")

    def flags(self) -> list[str]:
        """What the JVM is to be told: use the archive, or make it at its exit."""
        if self.path.exists():
            return ["-Xshare:auto", "-XX:+VerifySharedSpaces", f"-XX:SharedArchiveFile={self.path}"]
        self._sweep()
        return ["-Xshare:auto", f"-XX:ArchiveClassesAtExit={self._fresh}"]

    def keep(self) -> None:
        """Put the fresh archive in its place after the JVM ended by itself."""
        if self._fresh.exists():
            self._fresh.replace(self.path)
            log.info("Class archive made", extra={"action": "class_archive_made", "path": str(self.path)})

    def discard(self) -> bool:
        """Remove the archive, which may be why a start failed; False when there was none."""
        found = self.path.exists()
        self.path.unlink(missing_ok=True)
        self._fresh.unlink(missing_ok=True)
        return found

    def _sweep(self) -> None:
        """Remove what JVMs left half written whose starter is gone."""
        for left_over in self.path.parent.glob(f"{self.path.name}.*"):
            pid = left_over.suffix.removeprefix(".")
            if not pid.isdigit() or not psutil.pid_exists(int(pid)):
                left_over.unlink(missing_ok=True)
