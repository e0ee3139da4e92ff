"""The keys of the murmur2 vector, and what Kafka's own Java says of them."""

import random
import shutil
import subprocess
from pathlib import Path

from app.adapters.embedded.cache import cache_folder
from app.adapters.embedded.jars import read_lock

DATA = Path(__file__).parent.parent / "data"
VECTOR = DATA / "murmur2.tsv"
PROGRAM = DATA / "Murmur2Vector.java"


class NoJava(Exception):
    """What is missing to ask Kafka's own Java."""


def vector_keys() -> list[bytes]:
    """Every length to 64, every byte alone, our own device ids, and some long ones."""
    rng = random.Random(4)
    keys = [rng.randbytes(length) for length in range(1, 65)]
    keys += [bytes((value,)) for value in range(0, 256, 5)]
    keys += [b"%s-%04d" % (name, number) for name in (b"press", b"cnc") for number in range(0, 10_000, 199)]
    keys += [bytes(length) for length in (1, 3, 4, 7, 8)] + [b"\xff" * length for length in (1, 3, 4, 7, 8)]
    keys += [text.encode() for text in ("ö", "плата-7", "设备-0001", "🏭")]
    return [*keys, rng.randbytes(1_000), rng.randbytes(4_097)]


def java_lines(keys: list[bytes]) -> list[str]:
    """The lines of `tests/data/Murmur2Vector.java` for these keys. Raises `NoJava`."""
    java, compiler = shutil.which("java"), shutil.which("javac")
    if java is None or compiler is None:
        raise NoJava("no JDK on the PATH")
    folder = cache_folder(None) / f"kafka-{read_lock().version}"
    jars = [path for name in ("kafka-clients", "slf4j-api") for path in folder.glob(f"{name}-*.jar")]
    if len(jars) < 2:
        raise NoJava(f"no Kafka jars in {folder}; the embedded broker puts them there")
    done = subprocess.run(
        [java, "-cp", ":".join(map(str, jars)), str(PROGRAM)],
        input="\n".join(key.hex() for key in keys),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


if __name__ == "__main__":
    VECTOR.write_text("\n".join(java_lines(vector_keys())) + "\n", encoding="ascii")
