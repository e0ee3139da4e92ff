"""Writes the lock of the embedded Kafka's jars: resolves them once and records size and SHA-256 of each."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

from jgo import EnvironmentBuilder
from jgo.maven import MavenContext

LOCK = Path(__file__).parent.parent / "app" / "adapters" / "embedded" / "kafka.lock.toml"
VERSION = "4.1.0"
BROKER = f"org.apache.kafka:kafka_2.13:{VERSION}"
# Binds Kafka's SLF4J calls to its own Log4j 2; resolved apart, or it would pull Kafka's other jars to older versions.
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl"

HEADER = f"""\
# The jars of the embedded Kafka, in class path order; written by `make lock`, checked at every start.
version = "{VERSION}"
"""


def entry(group: str, artifact: str, version: str, jar: Path) -> str:
    digest = hashlib.sha256(jar.read_bytes()).hexdigest()
    return (
        f'\n[[jar]]\ngroup = "{group}"\nartifact = "{artifact}"\nversion = "{version}"\n'
        f'size_bytes = {jar.stat().st_size}\nsha256 = "{digest}"\n'
    )


def main() -> None:
    with TemporaryDirectory() as folder:
        context = MavenContext(repo_cache=Path(folder, "m2"))
        locked = EnvironmentBuilder(context=context, cache_dir=Path(folder, "env")).from_endpoint(BROKER).lockfile
        wanted = [(jar.groupId, jar.artifactId, jar.version) for jar in locked.dependencies]
        log4j_version = next(version for _, artifact, version in wanted if artifact == "log4j-core")
        wanted.append((*LOGGING.split(":"), log4j_version))
        entries = [entry(g, a, v, context.project(g, a).at_version(v).artifact().resolve()) for g, a, v in wanted]
    LOCK.write_text(HEADER + "".join(sorted(entries)))
    print(f"{LOCK.name}: {len(entries)} jars")


if __name__ == "__main__":
    main()
