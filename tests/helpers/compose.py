"""The files of `docker compose`, read as Docker reads them."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"

_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+):-(?P<default>[^{}$]*)\}|(?P<other>))")
_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_UNITS_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def compose(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The compose file with merge keys resolved and variables replaced."""
    document: dict[str, Any] = _replaced(yaml.safe_load(COMPOSE.read_text("utf-8")), environ or {})
    return document


def services(environ: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose(environ)["services"]
    return found


def is_ours(service: Mapping[str, Any]) -> bool:
    """Whether the service runs our image."""
    return "build" in service


def ours(environ: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services(environ).items() if is_ours(service)}


def roles_of(service: Mapping[str, Any]) -> list[str]:
    command = service["command"]
    roles: str = command[command.index("--roles") + 1]
    return roles.split(",")


def seconds(duration: str) -> float:
    """`1m30s` as seconds."""
    parts = re.findall(r"(\d+)([smh])", duration)
    assert "".join(map("".join, parts)) == duration, f"no duration: {duration}"
    return float(sum(int(count) * _UNITS_S[unit] for count, unit in parts))


def size_bytes(size: str) -> int:
    """`512M` as bytes."""
    return int(size[:-1]) * _UNITS_BYTES[size[-1].upper()]


def _replaced(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, environ) for inner in value]
    return _VARIABLE.sub(lambda match: _value(match, environ), value) if isinstance(value, str) else value


def _value(match: re.Match[str], environ: Mapping[str, str]) -> str:
    """Only `${NAME:-default}` is used here: a file that works for whoever has set nothing."""
    if match["escaped"]:
        return "$"
    assert match["name"], f"not of the form ${{NAME:-default}}: {match.string}"
    return environ.get(match["name"]) or match["default"]


# ---- Dockerfile ----


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word, its `--flags`, and the rest as text."""

    word: str
    flags: dict[str, str]
    text: str

    @property
    def arguments(self) -> list[str]:
        """The items of the JSON form, else the words."""
        return self.exec_form or shlex.split(self.text)

    @property
    def exec_form(self) -> list[str] | None:
        """The items of the JSON form; None for the form that a shell runs."""
        if not self.text.startswith("["):
            return None
        items: list[str] = json.loads(self.text)
        return items


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next."""

    image: str
    name: str | None
    instructions: tuple[Instruction, ...]

    def all(self, word: str) -> list[Instruction]:
        return [one for one in self.instructions if one.word == word]

    def last(self, word: str) -> Instruction:
        return self.all(word)[-1]


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, comments left out and continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [_instruction(line.strip()) for line in joined.splitlines()]


def _instruction(line: str) -> Instruction:
    word, _, rest = line.partition(" ")
    flags: dict[str, str] = {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    return Instruction(word, flags, rest.strip())


def stages() -> list[Stage]:
    """The stages of our Dockerfile, the last of which becomes the image."""
    found: list[Stage] = []
    for one in instructions(DOCKERFILE.read_text("utf-8")):
        if one.word == "FROM":
            image, *alias = one.text.split()
            assert not alias or alias[0] == "AS"
            found.append(Stage(image, alias[1] if alias else None, ()))
        else:
            stage = found[-1]
            found[-1] = Stage(stage.image, stage.name, (*stage.instructions, one))
    return found


def entrypoint() -> list[str]:
    return stages()[-1].last("ENTRYPOINT").arguments
