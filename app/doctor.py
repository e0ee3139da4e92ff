"""What Headrace needs of a machine, looked at piece by piece: each finding says how it is and what to do."""

import asyncio
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

import httpx

from app.adapters.broker_probe import Advertised, advertised_brokers, clock_offset, connection_problem
from app.adapters.embedded.cache import cache_folder
from app.adapters.embedded.jars import missing, read_lock
from app.adapters.embedded.java import MINIMUM_VERSION, installed_javas
from app.adapters.embedded.ports import choose_ports
from app.adapters.rocks import RocksLimits, RocksStore
from app.errors import BrokerUnavailable, ConfigError, EnvironmentError_, HeadraceError
from config.settings import Settings

Status = Literal["ok", "warn", "fail"]

PYTHON_MIN, PYTHON_BELOW = (3, 11), (3, 14)
# Told by name; of the others only what is missing or too old.
NAMED_PACKAGES = ("headrace", "faust-streaming", "aiokafka", "rocksdict", "uvloop")
CLOCK_WARN_MS = 1_000
TABLES_FREE_MIB = 256
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(==|>=)\s*([0-9][^,;\s]*)")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Finding(NamedTuple):
    """One line: what was looked at, how it is, and what to do about it (empty when nothing)."""

    status: Status
    subject: str
    detail: str
    advice: str = ""


def examine(settings: Settings, config_problems: Sequence[str], *, probe_clock: bool = True) -> Iterator[Finding]:
    """Every finding in turn; `config_problems` are those of the settings, which are then the defaults."""
    yield _python()
    yield from _packages()
    yield _config(settings, config_problems)
    yield from _own_kafka(settings)
    yield from _ports(settings)
    yield from _disks(settings)
    yield _rocksdb(Path(settings.tables.directory), settings)
    yield from asyncio.run(_broker(settings, probe_clock=probe_clock))


# ---- Python ----


def _python() -> Finding:
    detail = f"{platform.python_version()} at {sys.executable}"
    if PYTHON_MIN <= sys.version_info[:2] < PYTHON_BELOW:
        return Finding("ok", "Python", detail)
    return Finding("fail", "Python", detail, "Use Python 3.11, 3.12 or 3.13: remove .venv and run `make run` with it.")


def _packages() -> Iterator[Finding]:
    wanted = [match.groups() for each in requires("headrace") or () if (match := _REQUIREMENT.match(each))]
    wrong = [problem for name, relation, needed in wanted if (problem := package_problem(name, relation, needed))]
    if wrong:
        yield Finding("fail", "packages", "; ".join(wrong), "Run `make clean run`, or install headrace again.")
        return
    named = ", ".join(f"{name} {version(name)}" for name in NAMED_PACKAGES)
    yield Finding("ok", "packages", f"{named}; {len(wanted)} requirements met")


def package_problem(name: str, relation: str, needed: str) -> str | None:
    """What is wrong with an installed package; pins and lower bounds are what our requirements are made of."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is missing"
    if relation == "==" and found != needed:
        return f"{name} is {found}, not {needed}"
    if relation == ">=" and _numbers(found) < _numbers(needed):
        return f"{name} is {found}, older than {needed}"
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", text)[:3])


def _config(settings: Settings, problems: Sequence[str]) -> Finding:
    if problems:
        return Finding(
            "fail", "settings", "; ".join(problems), "Mend the file; the rest is looked at with the defaults."
        )
    from app.rules import compile_section  # noqa: PLC0415 - CEL is wanted for this alone
    from config.load import fingerprint  # noqa: PLC0415 - as above

    try:
        compile_section(settings.signals)
    except ConfigError as error:
        return Finding("fail", "settings", "; ".join(error.problems), "Mend the expressions of signals.rules.")
    return Finding("ok", "settings", f"valid, hash {fingerprint(settings)[:12]}")


# ---- an embedded Kafka ----


def _own_kafka(settings: Settings) -> Iterator[Finding]:
    """Java and the jars, where an embedded Kafka is to run."""
    server = settings.kafka.bootstrap_servers
    if server:
        yield Finding("ok", "Java, Kafka", f"not needed: kafka.bootstrap_servers is {server}")
        return
    cache = cache_folder(settings.embedded.cache_dir)
    yield _java(settings, cache)
    yield _jars(cache)


def _java(settings: Settings, cache: Path) -> Finding:
    found = installed_javas(settings.embedded.java_home, cache)
    for origin, program, java in found:
        if java is not None and java.version >= MINIMUM_VERSION:
            return Finding("ok", "Java", f"{java.version} from {origin}: {program}")
    seen = [
        f"{origin}: {program} {'does not run' if java is None else f'is version {java.version}'}"
        for origin, program, java in found
    ]
    if settings.embedded.java_home:
        advice = f"Set embedded.java_home to a Java {MINIMUM_VERSION} or newer, or leave it empty."
        return Finding("fail", "Java", "; ".join(seen), advice)
    detail = f"no Java {MINIMUM_VERSION} or newer" + (f" ({'; '.join(seen)})" if seen else "")
    return Finding("warn", "Java", detail, "The first `headrace up` fetches one (35 MB); that needs the network.")


def _jars(cache: Path) -> Finding:
    lock = read_lock()
    folder = cache / f"kafka-{lock.version}"
    wrong = missing(lock, folder)
    if not wrong:
        return Finding("ok", "Kafka jars", f"Kafka {lock.version}, {len(lock.jars)} jars verified in {folder}")
    damaged = [jar.file_name for jar in wrong if (folder / jar.file_name).exists()]
    if damaged:
        detail = f"{len(damaged)} damaged in {folder}: {', '.join(damaged[:3])}{'…' if len(damaged) > 3 else ''}"
    else:
        detail = f"{len(wrong)} of {len(lock.jars)} not in {folder} yet"
    size_mb = sum(jar.size_bytes for jar in wrong) / 1e6
    advice = f"The next `headrace up` fetches them ({size_mb:.0f} MB); that needs the network."
    return Finding("warn", "Kafka jars", detail, advice)


# ---- ports, disks ----


def _ports(settings: Settings) -> Iterator[Finding]:
    wanted: list[tuple[str, int, Callable[[int], bool]]] = [
        ("http.port", settings.http.port, _answers_health),
        ("health.port", settings.health.port, _answers_health),
        ("metrics.port", settings.metrics.port, _answers_metrics),
    ]
    if settings.profiling.enabled:
        wanted.append(("profiling.port", settings.profiling.port, lambda _port: False))
    if not settings.kafka.bootstrap_servers:
        wanted.append(("embedded.port", settings.embedded.port, _answers_kafka))
        wanted.append(("embedded.controller_port", settings.embedded.controller_port, lambda _port: False))
    for setting, port, is_ours in wanted:
        if port:
            yield port_finding(setting, port, is_ours)


def port_finding(setting: str, port: int, is_ours: Callable[[int], bool]) -> Finding:
    """Free, taken by a Headrace that runs, or taken by another program."""
    try:
        choose_ports([(port, setting)])
    except EnvironmentError_ as error:
        if is_ours(port):
            return Finding("ok", f"port {port}", f"{setting}: a running Headrace answers there")
        said, _, advice = str(error).partition("; ")
        return Finding("fail", f"port {port}", f"{setting}: {said}", advice[:1].upper() + advice[1:])
    return Finding("ok", f"port {port}", f"{setting}: free")


def _answers_health(port: int) -> bool:
    found = _get(f"http://127.0.0.1:{port}/health")
    return '"checks"' in found and '"roles"' in found


def _answers_metrics(port: int) -> bool:
    return "telemetry_ledger_records" in _get(f"http://127.0.0.1:{port}/metrics")


def _get(url: str) -> str:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).text
    except httpx.HTTPError:
        return ""


def _answers_kafka(port: int) -> bool:
    kafka = Settings().kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{port}"})
    try:
        return bool(asyncio.run(advertised_brokers(kafka)))
    except BrokerUnavailable:
        return False


def _disks(settings: Settings) -> Iterator[Finding]:
    folders = [("tables.directory", settings.tables.directory, TABLES_FREE_MIB)]
    if not settings.kafka.bootstrap_servers:
        folders.append(("embedded.data_dir", settings.embedded.data_dir, settings.embedded.min_free_mib))
    for setting, name, needed_mib in folders:
        folder = Path(name).expanduser().absolute()
        usage = shutil.disk_usage(_existing(folder))
        free_mib, share = usage.free >> 20, usage.free / usage.total
        detail = f"{setting}: {free_mib:,} MiB free ({share:.0%}) for {folder}"
        if free_mib < needed_mib:
            yield Finding("fail", "disk", detail, f"Make room, {needed_mib} MiB at least, or set {setting}.")
        elif share < 0.05:
            yield Finding("warn", "disk", detail, f"The disk is nearly full: make room, or set {setting}.")
        else:
            yield Finding("ok", "disk", detail)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _rocksdb(directory: Path, settings: Settings) -> Finding:
    """Write and read a store where the tables are to be, beside theirs and gone afterwards."""
    folder = directory.expanduser().absolute()
    tables = settings.tables
    limits = RocksLimits(tables.block_cache_bytes, tables.write_buffer_bytes, max_open_files=tables.max_open_files)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=_existing(folder)) as temporary:
            store = RocksStore(Path(temporary, "store"), limits)
            try:
                store.write([(b"key", b"value")])
                whole = store.get(b"key") == b"value"
            finally:
                store.close()
    except (OSError, EnvironmentError_) as error:
        return Finding("fail", "RocksDB", f"{folder}: {error}", "Set tables.directory to a folder of yours.")
    if not whole:
        return Finding("fail", "RocksDB", f"{folder}: what was written is not what is read", "Look at the disk.")
    return Finding("ok", "RocksDB", f"writes and reads in {_existing(folder)}")


# ---- a broker ----


async def _broker(settings: Settings, *, probe_clock: bool) -> list[Finding]:
    kafka = settings.kafka
    named = kafka.bootstrap_servers
    if not named:
        port = settings.embedded.port
        if not port or await connection_problem("127.0.0.1", port) is not None:
            return [Finding("ok", "broker", "none is named and none runs here: `headrace up` starts one")]
        kafka = kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{port}"})
    try:
        brokers = await advertised_brokers(kafka)
    except (BrokerUnavailable, EnvironmentError_) as error:
        advice = "Start it, or set kafka.bootstrap_servers (KAFKA_BOOTSTRAP_SERVERS) to one that runs."
        return [Finding("fail", "broker", str(error).rstrip("."), advice)]
    found = [Finding("ok", "broker", f"{kafka.bootstrap_servers} answers: {len(brokers)} in the cluster")]
    found += [advertised_finding(each, kafka.bootstrap_servers) for each in brokers]
    if any(each.problem for each in brokers):
        found.append(Finding("warn", "clock", "not compared: the broker cannot be reached", "Mend the address first."))
    elif all(each.host in _LOOPBACK for each in brokers):
        found.append(Finding("ok", "clock", "the broker is on this machine"))
    elif not probe_clock:
        found.append(Finding("ok", "clock", "not compared, as asked for"))
    else:
        found.append(await clock_finding(settings.model_copy(update={"kafka": kafka})))
    return found


def advertised_finding(broker: Advertised, bootstrap: str) -> Finding:
    """Clients use what is advertised, so that it must work from here, not just the bootstrap address."""
    at = f"broker {broker.node_id} advertises {broker.host}:{broker.port}"
    if broker.problem is None:
        return Finding("ok", "advertised", f"{at}, which answers")
    here = broker.host in _LOOPBACK and not bootstrap.startswith(_LOOPBACK)
    why = ": for a client that is its own machine" if here else ""
    advice = f"Set advertised.listeners of that broker to an address that this machine reaches{why}."
    return Finding("fail", "advertised", f"{at}, but {broker.problem}", advice)


async def clock_finding(settings: Settings) -> Finding:
    """Our clock against the broker's: the transform refuses what is too far ahead, windows close by the clock."""
    try:
        offset_ms, uncertainty_ms = await clock_offset(settings.kafka)
    except HeadraceError as error:
        return Finding("warn", "clock", f"not compared: {str(error).rstrip('.')}", "Compare it by other means.")
    side = "ahead of" if offset_ms > 0 else "behind"
    detail = f"the broker is {abs(offset_ms):,.0f} ms {side} this machine (± {uncertainty_ms:,.0f} ms)"
    advice = "Let both follow a time server (NTP)."
    away_ms = abs(offset_ms) - uncertainty_ms
    if away_ms > settings.transform.max_future_ms:
        return Finding("fail", "clock", f"{detail}, more than transform.max_future_ms", advice)
    return Finding("warn", "clock", detail, advice) if away_ms > CLOCK_WARN_MS else Finding("ok", "clock", detail)
