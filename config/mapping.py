"""Mappings of recorded files: what their columns mean, read from a small YAML."""

from importlib.resources import files
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError, field_validator, model_validator

from app.errors import ConfigError
from config.problems import data_path, sentence
from config.section import Section, setting
from config.tree import dotted
from config.yaml_file import read_file

# One or two words of the format, else a strptime format.
_NAMED_FORMATS = frozenset({"iso", "epoch_s", "epoch_ms"})


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}; zones are named as in Europe/Berlin or UTC") from error
    return name


def _format(text: str) -> str:
    if text not in _NAMED_FORMATS and "%" not in text:
        raise ValueError(f"{text!r} is none of iso, epoch_s, epoch_ms and no format such as %Y-%m-%d %H:%M:%S")
    return text


class TimeMapping(Section):
    """The column of the time."""

    column: str = setting(min_length=1, description="Name of the column.")
    format: str = setting("iso", description="iso, epoch_s, epoch_ms or a strptime format.")
    zone: str = setting("UTC", description="Zone of times that name none.")

    _check_zone = field_validator("zone")(_zone)
    _check_format = field_validator("format")(_format)


class DeviceMapping(Section):
    """Whose readings the file holds, and what is known of the device."""

    id: str | None = setting(None, min_length=1, description="Name of the device; {file} is the file's name.")
    column: str | None = setting(None, min_length=1, description="Column that names the device.")
    manufacturer: str = setting("", description="Maker of the device.")
    model: str = setting("", description="Model of the device.")
    site: str = setting("", description="Site of the device.")
    area: str = setting("", description="Area of the site.")
    line: str = setting("", description="Line of the area.")

    @model_validator(mode="after")
    def _one_name(self) -> "DeviceMapping":
        if (self.id is None) == (self.column is None):
            raise ValueError("give either id or column")
        return self


class MetricMapping(Section):
    """A metric and its column."""

    metric: str = setting(min_length=1, max_length=128, description="Name of the metric.")
    column: str = setting(min_length=1, description="Name of the column.")
    unit: str = setting(min_length=1, max_length=16, description="UNECE Rec 20 code: CEL, BAR, RPM, …")


class LabelWindows(Section):
    """Labelled times in a JSON file of its own: {key: [[from, to], …]}."""

    file: str = setting(min_length=1, description="The JSON file, beside the recording.")
    key: str = setting(min_length=1, description="Key of the recording in it; {file} is the file's name.")
    kind: str = setting("anomaly", min_length=1, description="Kind of truth that the windows are.")
    metric: str | None = setting(None, description="Metric that is labelled; without it the whole device.")
    format: str = setting("iso", description="iso, epoch_s, epoch_ms or a strptime format.")
    zone: str = setting("UTC", description="Zone of times that name none.")

    _check_zone = field_validator("zone")(_zone)
    _check_format = field_validator("format")(_format)


class LabelMapping(Section):
    """Where the recording's own labels are."""

    columns: dict[str, str] = setting(default_factory=dict, description="Kind of truth: column; not 0 means it holds.")
    windows: LabelWindows | None = setting(None, description="Labelled times in another file.")


class ReplayMapping(Section):
    """What the columns of a recorded file mean."""

    delimiter: str = setting(",", min_length=1, max_length=1, description="Character between two columns.")
    decimal: str = setting(
        ".", pattern=r"^[.,]$", form="a point or a comma", description="Character before the fraction."
    )
    missing: list[str] = setting(
        default_factory=lambda: ["", "NaN", "nan", "null"], description="Texts of a value that was not measured."
    )
    time: TimeMapping = setting(description="The column of the time.")
    device: DeviceMapping = setting(description="Whose readings these are.")
    metrics: list[MetricMapping] = setting(min_length=1, max_length=256, description="Metrics and their columns.")
    labels: LabelMapping = setting(LabelMapping(), description="The recording's own labels.")

    @model_validator(mode="after")
    def _each_metric_once(self) -> "ReplayMapping":
        names = [each.metric for each in self.metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"metrics: {', '.join(twice)} is there twice")
        if self.delimiter == self.decimal:
            raise ValueError("delimiter and decimal must differ")
        return self


def shipped() -> list[str]:
    """Names of the mappings that come with the program."""
    return sorted(each.name.removesuffix(".yaml") for each in _folder().iterdir() if each.name.endswith(".yaml"))


def load_mapping(name_or_path: str | Path) -> ReplayMapping:
    """A mapping by its file, or by the name of one that comes with the program. Raises `ConfigError`."""
    path = Path(name_or_path)
    if str(name_or_path) in shipped():
        path = Path(str(_folder() / f"{name_or_path}.yaml"))
    elif not path.exists():
        raise ConfigError([f"{path}: there is no such file and no mapping of that name; there are {_names()}"])
    document = read_file(path)
    if document.problems:
        raise ConfigError(document.problems)
    try:
        return ReplayMapping.model_validate(document.data)
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            at = data_path(document.data, detail["loc"])
            text = sentence(ReplayMapping, at, detail)
            problems.append(": ".join(part for part in (document.where(at), dotted(at), text) if part))
        raise ConfigError(sorted(set(problems))) from error


def _folder() -> Any:
    return files("config") / "mappings"


def _names() -> str:
    return ", ".join(shipped())
