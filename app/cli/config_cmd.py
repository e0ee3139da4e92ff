"""`headrace config`: the settings in force, where each value came from, and whether a file is valid."""

from typing import Annotated, Any

import typer

from app.cli.options import AsJson, ConfigFile, SetFlags, load_settings, print_json
from app.errors import ConfigError

app = typer.Typer()

_WIDTH = 60


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="Show only this section or key, as in producer.batch_size.")] = "",
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Show values, units and origins; secrets are [REDACTED]."""
    from config.load import effective, fingerprint, origins  # noqa: PLC0415 - `--help` needs no pydantic

    loaded = load_settings(config, flags)
    rows = [row for row in _rows(loaded) if not key or row[0] == key or row[0].startswith(f"{key}.")]
    if not rows:
        raise ConfigError([f"{key}: there is no such section or key{_near(key)}"])
    if as_json and not key:
        print_json(
            {"hash": fingerprint(loaded.settings), "settings": effective(loaded.settings), "origins": origins(loaded)}
        )
    elif as_json:
        print_json([dict(zip(("key", "value", "unit", "origin"), row, strict=True)) for row in rows])
    else:
        _print_rows(rows)


@app.command()
def check(config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False) -> None:
    """Tell every problem at once, with file and line."""
    from config.load import fingerprint  # noqa: PLC0415 - `--help` needs no pydantic

    try:
        loaded = load_settings(config, flags)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"valid": False, "problems": error.problems})
        raise typer.Exit(error.exit_code) from None
    digest = fingerprint(loaded.settings)
    if as_json:
        print_json({"valid": True, "problems": [], "hash": digest})
    else:
        print(f"{loaded.file or 'The settings'}: valid, hash {digest}")


@app.command()
def reference(
    markdown: Annotated[bool, typer.Option("--markdown", help="A page to read instead of a file to use.")] = False,
) -> None:
    """Print a file of all keys and defaults."""
    from config.reference import as_markdown, as_yaml  # noqa: PLC0415 - `--help` needs no pydantic

    print(as_markdown() if markdown else as_yaml(), end="")


def _rows(loaded: Any) -> list[tuple[str, Any, str, str]]:
    from config import tree  # noqa: PLC0415 - `--help` needs no pydantic
    from config.load import effective  # noqa: PLC0415 - `--help` needs no pydantic

    shown = effective(loaded.settings)
    rows = []
    for leaf in tree.leaves(type(loaded.settings)):
        value: Any = shown
        for part in leaf.path:
            value = value[part]
        rows.append((leaf.dotted, value, leaf.unit or "", loaded.origin(leaf.path)))
    return rows


def _print_rows(rows: list[tuple[str, Any, str, str]]) -> None:
    import orjson  # noqa: PLC0415 - `--help` needs no JSON

    table = [(key, _cut(orjson.dumps(value).decode()), unit, origin) for key, value, unit, origin in rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        print("  ".join([*cells, row[3]]))


def _cut(text: str) -> str:
    """Long lists in one line of a table; `--json` has them whole."""
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _near(key: str) -> str:
    from config import tree  # noqa: PLC0415 - `--help` needs no pydantic
    from config.environment import suggest  # noqa: PLC0415 - `--help` needs no pydantic
    from config.settings import Settings  # noqa: PLC0415 - `--help` needs no pydantic

    return suggest(key, [*Settings.model_fields, *(leaf.dotted for leaf in tree.leaves(Settings))])
