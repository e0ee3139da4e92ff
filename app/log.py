"""Sets up the log: JSON or console lines on the standard logging module, redacted and sampled."""

import contextlib
import datetime as dt
import json
import logging
import logging.handlers
import os
import random
import socket
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import orjson
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.orjson import OrjsonFormatter

from app.actions import ALWAYS_KEPT
from app.errors import EnvironmentError_
from config.log import LogSettings
from config.redact import redact_entry, redact_text

CONTEXT_FIELDS = ("workflow_id", "execution_id", "device_id", "trace_id", "span_id")

_RESERVED = frozenset(RESERVED_ATTRS) | {"taskName", "color_message"}
_CONTEXT: ContextVar[Mapping[str, Any]] = ContextVar("log_context", default={})  # noqa: B039 - never changed in place
_COLORS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
# A device may send any text; a terminal must not obey it. Tab and line break stay.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_OWNED = "headrace"

REPEAT_INTERVAL_S = 60.0
_TALKATIVE = "aiokafka"
_KINDS_MAX = 500


def configure(settings: LogSettings, *, role: str = "", stream: TextIO | None = None) -> None:
    """Install the log of this process, replacing the one installed before; safe to repeat on a reload.

    `role` joins the name of the file, so that processes never share one. `stream` is stdout when not
    given; commands whose stdout is their answer pass stderr. Raises `EnvironmentError_` when the file
    cannot be opened.
    """
    handler = _handler(settings, role, stream or sys.stdout)
    handler.set_name(_OWNED)
    handler.addFilter(Sampling(settings.sample_rate, random.Random()))  # noqa: S311 - no secret depends on it
    handler.addFilter(Repeats())
    handler.addFilter(Context())
    handler.addFilter(Redaction())
    root = logging.getLogger()
    previous = [old for old in root.handlers if old.get_name() == _OWNED]
    root.addHandler(handler)
    for old in previous:
        root.removeHandler(old)
        old.close()
    root.setLevel(settings.level)
    _set_levels(settings.levels)


def is_colored() -> bool:
    """Whether colour is welcome on a terminal: not where NO_COLOR is set (https://no-color.org)."""
    return not os.environ.get("NO_COLOR")


@contextlib.contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Add fields (`device_id`, `execution_id`, `trace_id`, …) to every record of this task meanwhile."""
    token = _CONTEXT.set({**_CONTEXT.get(), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class Sampling(logging.Filter):
    """Keeps a share of DEBUG and INFO records, and all that matter more."""

    def __init__(self, rate: float, rng: random.Random) -> None:
        super().__init__()
        self._rate = rate
        self._rng = rng

    def filter(self, record: logging.LogRecord) -> bool:
        if self._rate >= 1 or record.levelno >= logging.WARNING:
            return True
        return record.__dict__.get("action") in ALWAYS_KEPT or self._rng.random() < self._rate


class Repeats(logging.Filter):
    """Lets Kafka's client say the same thing once a minute: without brokers it says it two hundred times a second.

    The next record of the kind tells how often it was left out (`repeated`). Our own lines say what is wrong, once.
    What the client calls an error and tries again by itself is no more than information.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(_TALKATIVE):
            return True
        if record.levelno == logging.ERROR and any(getattr(each, "retriable", False) for each in record.args or ()):
            # Such as the leader of a topic that was made a moment ago: the client tries again by itself.
            record.levelno, record.levelname = logging.INFO, "INFO"
            if logging.getLogger().level > logging.INFO:
                return False
        what = (record.name, record.levelno, str(record.msg))
        known = self._said.get(what)
        if known is not None and 0 <= record.created - known[0] < REPEAT_INTERVAL_S:
            self._said[what] = (known[0], known[1] + 1)
            return False
        if known is None and len(self._said) >= _KINDS_MAX:
            self._said.clear()
        self._said[what] = (record.created, 0)
        if known is not None and known[1]:
            record.__dict__["repeated"] = known[1]
        return True


class Context(logging.Filter):
    """Adds the fields of `bound` that the record does not carry itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _CONTEXT.get().items():
            record.__dict__.setdefault(name, value)
        return True


class Redaction(logging.Filter):
    """Takes secrets out of the message, its arguments, the fields and the exception."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, Mapping):
            fields = {key: value for key, value in record.msg.items() if key not in _RESERVED}
            record.__dict__.update({str(key): value for key, value in fields.items() if key not in record.__dict__})
            record.msg = str(record.msg.get("message", ""))
        record.msg, record.args = redact_text(_message(record)), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact_text(record.exc_text)
        record.exc_info = None
        if record.stack_info:
            record.stack_info = redact_text(record.stack_info)
        for name in record.__dict__.keys() - _RESERVED:
            record.__dict__[name] = redact_entry(name, record.__dict__[name])
        return True


class JsonLines(OrjsonFormatter):
    """One JSON object a line, the fixed fields first."""

    def __init__(self, identity: Mapping[str, str]) -> None:
        super().__init__(json_default=str)
        self._identity = identity

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        extra = _fields(record)
        log_data["timestamp"] = _timestamp(record)
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        log_data["message"] = record.message
        if "action" in extra:
            log_data["action"] = extra.pop("action")
        log_data.update(self._identity)
        log_data.update({name: extra.pop(name) for name in CONTEXT_FIELDS if name in extra})
        log_data.update({name if name not in log_data else f"{name}_": value for name, value in extra.items()})
        log_data.update({"exception" if key == "exc_info" else key: text for key, text in message_dict.items()})

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        try:
            return super().jsonify_log_record(log_data)
        except TypeError:
            # orjson takes no lone surrogates and no numbers beyond 64 bits; the standard encoder does.
            return json.dumps(log_data, default=str, separators=(",", ":"))


class Console(logging.Formatter):
    """One line for people: local time, level, text and fields."""

    def __init__(self, *, color: bool) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        clock = dt.datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = f"{record.levelname:<8}"
        fields = " ".join(f"{key}={_word(value)}" for key, value in _fields(record).items() if key != "action")
        text = record.getMessage().translate(_CONTROLS)
        if self._color:
            level = f"\x1b[{_COLORS.get(record.levelname, '0')}m{level}\x1b[0m"
            fields = f"\x1b[2m{fields}\x1b[0m" if fields else ""
        line = f"{clock} {level} {text}" + (f"  {fields}" if fields else "")
        details = [part.translate(_CONTROLS) for part in (record.exc_text, record.stack_info) if part]
        return "\n".join([line, *details])


def release() -> str:
    """The version of the installed package."""
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "unknown"


def _handler(settings: LogSettings, role: str, stream: TextIO) -> logging.Handler:
    if settings.file:
        path = Path(settings.file).expanduser()
        path = path.with_stem(f"{path.stem}-{role}") if role else path
        handler: logging.Handler = _daily_file(path, settings.keep_days)
        is_terminal = False
    else:
        handler = logging.StreamHandler(stream)
        is_terminal = stream.isatty()
    form = settings.format if settings.format != "auto" else "console" if is_terminal else "json"
    color = settings.color == "always" or (settings.color == "auto" and is_terminal and is_colored())
    handler.setFormatter(Console(color=color) if form == "console" else JsonLines(_identity(settings)))
    return handler


def _daily_file(path: Path, keep_days: int) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return logging.handlers.TimedRotatingFileHandler(
            path, when="midnight", utc=True, backupCount=keep_days, encoding="utf-8"
        )
    except OSError as error:
        message = f"The log file {path} cannot be written: {error.strerror or error}. Change log.file or its rights."
        raise EnvironmentError_(message) from error


def _identity(settings: LogSettings) -> dict[str, str]:
    return {
        "service": settings.service,
        "version": release(),
        "environment": settings.environment,
        "pod": settings.pod or socket.gethostname(),
        "namespace": settings.namespace,
    }


_levels_set: set[str] = set()


def _set_levels(levels: Mapping[str, str]) -> None:
    for name in _levels_set - levels.keys():
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    _levels_set.clear()
    _levels_set.update(levels)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - a wrong log call must not stop the work it tells of
        return f"{record.msg} (its arguments do not fit: {error})"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _RESERVED and value is not None}


def _timestamp(record: logging.LogRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(value: Any) -> str:
    text = (
        value if isinstance(value, str) else orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    )
    return (f'"{text}"' if " " in text and isinstance(value, str) else text).translate(_CONTROLS)
