"""Secrets of tasks: `${secret:NAME}` from the environment or a folder of files, resolved for one attempt only.

Looked up in this order: HEADRACE_SECRET_<NAME> in upper case, the same with the name as it is written, the file
NAME in `tasks.secrets_directory` (without its last line break). Files are read each time, so that a rotated secret
needs no restart.

Only what the definition itself says is resolved: references are taken out before expressions are rendered, so that
an input whose text looks like a reference stays text.
"""

import json
import os
import re
import secrets as random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote

from app.errors import TaskFailed
from config.environment import TASK_SECRET
from config.redact import REDACTED, redact_text

REFERENCE: Final = re.compile(r"(?<!\$)\$\{\s*secret:\s*([^}]*?)\s*\}")
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
_URL_PASSWORD: Final = re.compile(r"://[^/@\s]*?:([^@\s]+)@")
_MAX_BYTES: Final = 65_536
# Hiding shorter ones would blacken every text.
_SHORTEST: Final = 4
# Of a secret of several lines, such as a key; its last line may be short.
_SHORTEST_LINE: Final = 16

Redact = Callable[[str], str]


class Secrets:
    """Where secrets come from."""

    def __init__(self, directory: str | None, environ: Mapping[str, str] = os.environ) -> None:
        self._directory = Path(directory).expanduser() if directory else None
        self._environ = environ

    def get(self, name: str) -> str:
        """The value. Raises `TaskFailed` of type `UnknownSecret`."""
        assert NAME.fullmatch(name), "a file's name with / would leave the folder"
        for key in (TASK_SECRET + name.upper().replace("-", "_").replace(".", "_"), TASK_SECRET + name):
            if key in self._environ:
                return self._environ[key]
        if self._directory is not None:
            try:
                with (self._directory / name).open("rb") as file:
                    content = file.read(_MAX_BYTES + 1)
                if len(content) > _MAX_BYTES:
                    raise _unknown(name, f"its file has more than {_MAX_BYTES} bytes")
                return content.decode().removesuffix("\n").removesuffix("\r")
            except FileNotFoundError:
                raise _unknown(name, "it is neither in the environment nor in tasks.secrets_directory") from None
            except (OSError, ValueError) as error:
                raise _unknown(name, f"its file cannot be read ({type(error).__name__})") from error
        raise _unknown(name, f"there is no variable {TASK_SECRET}{name.upper()}")


class Resolution:
    """The secrets of one attempt: taken out of the params, put back after rendering, and hidden in texts."""

    def __init__(self, source: Secrets) -> None:
        self._source = source
        # Nobody who writes an input can guess the mark.
        self._mark = f"<secret-{random.token_hex(16)}:"
        self._marked = re.compile(rf"{self._mark}([^>]*)>")
        self._values: dict[str, str] = {}

    def take_out(self, params: Any) -> Any:
        """`params` with each reference replaced by a mark that rendering leaves alone. Raises `TaskFailed`."""

        def marked(found: re.Match[str]) -> str:
            name = found[1]
            if NAME.fullmatch(name) is None:
                raise _unknown(name, "a name is letters, digits, _, - and .")
            return f"{self._mark}{name}>"

        return _strings(params, lambda text: REFERENCE.sub(marked, text) if "${" in text else text)

    def put_back(self, params: Any) -> Any:
        """`params` with the values of the secrets. Raises `TaskFailed` of type `UnknownSecret`."""
        return _strings(params, lambda text: self._marked.sub(self._value, text) if self._mark in text else text)

    def redact(self, text: str) -> str:
        """`text` without the values of this attempt's secrets, and without what else looks like one."""
        for value in sorted(self._hidden(), key=len, reverse=True):
            text = text.replace(value, REDACTED)
        return redact_text(text)

    def _value(self, found: re.Match[str]) -> str:
        name = found[1]
        if name not in self._values:
            self._values[name] = self._source.get(name)
        return self._values[name]

    def _hidden(self) -> set[str]:
        values = set(self._values.values())
        # A driver may quote the password of a secret URL alone.
        values |= {found for value in self._values.values() for found in _URL_PASSWORD.findall(value)}
        values |= {other for value in values for other in _spelled(value)}
        return {value for value in values if len(value) >= _SHORTEST}


def _spelled(value: str) -> set[str]:
    """How else a value may stand in a message: in a URL, quoted by Python or in JSON, on one line, or a line of it."""
    lines = {line for line in value.splitlines() if len(line) >= _SHORTEST_LINE} if "\n" in value else set()
    return {
        *lines,
        quote(value, safe=""),
        quote_plus(value),
        unquote(value),
        repr(value)[1:-1],
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        " ".join(value.split()),
    }


def _strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strings(item, change) for item in value]
    return value


def _unknown(name: str, why: str) -> TaskFailed:
    return TaskFailed(
        "UnknownSecret",
        f"the secret {name!r:.140} cannot be had: {why}",
        retryable=False,
        detail={"secret": name[:128]},
    )
