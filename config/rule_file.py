"""Rule files: a YAML with the section `signals`, of its own or among other sections."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.errors import ConfigError
from config.problems import data_path, sentence
from config.section import Section, setting
from config.signals import SignalsSettings
from config.tree import dotted
from config.yaml_file import read_file


class _RuleFile(Section):
    signals: SignalsSettings = setting(description="The rules over readings and rollups.")


def shipped_rules() -> list[str]:
    """Names of the rule files that come with the program."""
    return sorted(each.name.removesuffix(".yaml") for each in _folder().iterdir() if each.name.endswith(".yaml"))


def load_rules(name_or_path: str | Path) -> SignalsSettings:
    """The section `signals` of a file, or of one that comes with the program. Raises `ConfigError`."""
    path = Path(name_or_path)
    if str(name_or_path) in shipped_rules():
        path = Path(str(_folder() / f"{name_or_path}.yaml"))
    elif not path.exists():
        names = ", ".join(shipped_rules())
        raise ConfigError([f"{path}: there is no such file and there are no rules of that name; there are {names}"])
    document = read_file(path)
    if document.problems:
        raise ConfigError(document.problems)
    data = {"signals": document.data.get("signals")}
    try:
        return _RuleFile.model_validate(data).signals
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            at = data_path(data, detail["loc"])
            text = sentence(_RuleFile, at, detail)
            problems.append(": ".join(part for part in (document.where(at), dotted(at), text) if part))
        raise ConfigError(sorted(set(problems))) from error


def _folder() -> Any:
    return files("config") / "rules"
