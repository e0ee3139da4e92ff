"""The parameters of the built-in task types as part of a page: `python -m app.adapters.tasks.manual`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from app.adapters.tasks.registry import BUILT_IN, Registry

PAGE: Final = Path("docs/tasks.md")
MARK: Final = "<!-- From here on written by `python -m app.adapters.tasks.manual`; change the models instead. -->"


def page(before: str) -> str:
    """The page with its reference made anew; what stands above the mark is kept."""
    return f"{before.partition(MARK)[0]}{MARK}\n\n{reference()}"


def reference() -> str:
    """Every built-in type with its parameters, in Markdown."""
    registry = Registry([])
    return "\n".join(line for name in BUILT_IN for line in _type(registry, name))


def _type(registry: Registry, name: str) -> Iterator[str]:
    task_type = registry.get(name)
    schema = task_type.params_model.model_json_schema()
    places = {
        "async": "on the event loop",
        "blocking": "in a thread",
        "process": "in a process, unless `mode` says else",
    }
    yield from (f"## {name}", "")
    yield f"{_sentence(task_type)} Runs {places[task_type.kind]}{'; pure' if task_type.pure else ''}."
    yield from ("", "| parameter | value | default | |", "|---|---|---|---|")
    required = set(schema.get("required", ()))
    for field, facts in schema["properties"].items():
        default = "required" if field in required else f"`{_default(facts)}`"
        yield f"| `{field}` | {_value(facts)} | {default} | {_cell(facts.get('description', ''))} |"
    yield ""


def _sentence(task_type: Any) -> str:
    return " ".join((task_type.__doc__ or "").split())


def _default(facts: dict[str, Any]) -> str:
    value = facts.get("default")
    if value is None and "default" not in facts:
        return "[]" if facts.get("type") == "array" else "{}"
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if not isinstance(value, list | dict)
        else str(value)
    )


def _value(facts: dict[str, Any]) -> str:
    if "enum" in facts:
        return " \\| ".join(str(one) for one in facts["enum"])
    if "anyOf" in facts:
        kinds = [_value(one) for one in facts["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    kind = facts.get("type")
    if kind == "array":
        return f"list of {_value(facts['items'])}" if facts.get("items") else "list"
    if kind == "object":
        inner = facts.get("additionalProperties")
        return f"object of {_value(inner)}" if isinstance(inner, dict) and inner else "object"
    names = {"string": "text", "integer": "integer", "number": "number", "boolean": "true, false", None: "any"}
    bounds = [f"≥ {facts['minimum']}"] if "minimum" in facts else []
    bounds += [f"> {facts['exclusiveMinimum']}"] if "exclusiveMinimum" in facts else []
    bounds += [f"≤ {facts['maximum']}"] if "maximum" in facts else []
    return " ".join([names[kind], *bounds])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
