"""JSON Schemas of definitions and of the workflow topics; `python -m app.definitions.schemas docs` writes them."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.adapters.tasks.registry import Registry
from app.definitions.models import CONTROL_PARAMS, WorkflowShape
from app.domain.workflow.backfill import BackfillCancel, BackfillStart
from app.domain.workflow.events import EVENT_TYPES
from app.domain.workflow.orders import Recall, TaskOrder
from app.domain.workflow.schedule import (
    EntityTold,
    ScheduleDelete,
    SchedulePause,
    SchedulePut,
    ScheduleResume,
    ScheduleRunNow,
)
from app.workflow_wire import Told
from config.asyncapi import FOLDER, write
from config.schemas import DIALECT, rendered

Schema = Mapping[str, Any]

ENTITY_COMMANDS: Final = (
    *(SchedulePut, ScheduleDelete, SchedulePause, ScheduleResume, ScheduleRunNow),
    *(BackfillStart, BackfillCancel, EntityTold),
)
_TEXT: Final[Schema] = {"type": "string"}
_AT: Final[Schema] = {"type": "integer", "minimum": 0, "description": "Milliseconds since 1970, UTC."}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}


def schemas() -> dict[str, Schema]:
    """By the name of their file."""
    return {
        "workflow": workflow(),
        "workflow-definition": _definition(),
        "workflow-command": _one_of(
            "Workflow command",
            "What an execution, a schedule or a backfill is told. Key: its id; the partition is given with it.",
            [*Told.__args__, *ENTITY_COMMANDS],
        ),
        "workflow-events": _events(),
        "workflow-task": _one_of(
            "Task order or recall",
            "One attempt of a task, for a worker of its queue; or what is called back of an execution's attempts.",
            [TaskOrder, Recall],
        ),
        "workflow-dead-letter": _dead_letter(),
    }


def workflow() -> Schema:
    """A definition as people write it; `with` is described for each built-in task type."""
    registry = Registry(plug_ins=())
    types: dict[str, type[BaseModel]] = {name: registry.params_model(name) for name in registry.names()}
    types |= CONTROL_PARAMS
    models: list[type[BaseModel]] = [WorkflowShape, *types.values()]
    modes: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in models]
    references, definitions = models_json_schema(modes, ref_template="#/$defs/{model}")
    known = definitions["$defs"]
    root = known.pop("WorkflowShape")
    root["properties"]["tasks"]["additionalProperties"] = False
    task = known["TaskShape"]
    task["allOf"] = [
        {
            "if": {"properties": {"type": {"const": name}}},
            "then": {"properties": {"with": _lenient(references[model, "validation"], known, name)}},
        }
        for name, model in sorted(types.items())
    ]
    for model in types.values():  # written out where the type is chosen
        known.pop(_name(references[model, "validation"]), None)
    return {"$schema": DIALECT, **root, "title": "Workflow", "$defs": dict(sorted(known.items()))}


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _lenient(reference: Mapping[str, Any], known: dict[str, Any], type_name: str) -> Schema:
    """The parameters of a type, each of which may be an expression instead, as far as an editor can tell."""
    model = known[_name(reference)]
    expression = {"type": "string", "pattern": r"\$\{"}
    properties: dict[str, Any] = {
        name: {"anyOf": [schema, expression]} for name, schema in model.get("properties", {}).items()
    }
    if type_name not in CONTROL_PARAMS:
        properties["from"] = {"description": "The rows: CEL, or a value with ${…}; left out: the result of `needs`."}
    return {
        "type": ["object", "null"],
        "description": model.get("description", ""),
        "properties": properties,
        "required": model.get("required", []),
        "additionalProperties": False,
    }


def _definition() -> Schema:
    version: Schema = {
        "id": _TEXT,
        "version": {**_TEXT, "description": "First 12 hex digits of the content's SHA-256."},
    }
    return {
        "$schema": DIALECT,
        "title": "Workflow definition",
        "description": "Registered versions (key workflow:ID@VERSION), the latest of each workflow (latest:ID), and "
        "summaries of schedules and backfills (schedule:NAME, backfill:NAME).",
        "anyOf": [
            {
                "title": "Version",
                "type": "object",
                "properties": {**version, "definition": {"$ref": "workflow.json"}, "registered_at": _AT},
                "required": ["id", "version", "definition", "registered_at"],
            },
            {"title": "Latest", "type": "object", "properties": version, "required": ["id", "version"]},
            {"title": "Summary", "type": "object", "description": "What is known of a schedule or a backfill."},
        ],
    }


def _events() -> Schema:
    events, definitions = _components(list(EVENT_TYPES.values()))
    return {
        "$schema": DIALECT,
        "title": "Workflow events",
        "description": "The events of one decision of one execution, which are its history. The same run may come "
        "twice after a takeover; of two with the same first_seq the one of the higher epoch holds.",
        "type": "object",
        "properties": {
            "execution_id": _TEXT,
            "workflow": _TEXT,
            "version": _TEXT,
            "epoch": _COUNT,
            "first_seq": {**_COUNT, "description": "seq of the first event; the others follow without a gap."},
            "events": {"type": "array", "minItems": 1, "items": {"anyOf": events}},
        },
        "required": ["execution_id", "workflow", "version", "epoch", "first_seq", "events"],
        "$defs": definitions,
    }


def _dead_letter() -> Schema:
    place = {"topic": _TEXT, "partition": _COUNT, "offset": _COUNT, "at": _AT}
    refused = {
        "reason": {**_TEXT, "description": "Short name of the cause."},
        "detail": _TEXT,
        "value": {**_TEXT, "description": "The refused value in Base64, or its beginning."},
        "value_bytes": {**_COUNT, "description": "Its full length."},
        **place,
    }
    text_or_null = {"type": ["string", "null"]}
    ended = {
        "execution_id": _TEXT,
        "workflow": _TEXT,
        "version": _TEXT,
        "status": {"enum": ["failed", "timed_out"]},
        "task": {**text_or_null, "description": "The task that failed."},
        "error": {"type": ["object", "null"], "properties": {"type": _TEXT, "message": _TEXT}},
        "at": _AT,
    }
    kinds = {"execution": ended, "command": refused, "trigger": {"workflow": text_or_null, **refused}}
    return {
        "$schema": DIALECT,
        "title": "Workflow dead letter",
        "description": "An execution that failed, a command that was refused, or a record that could start nothing.",
        "anyOf": [
            {
                "title": kind,
                "type": "object",
                "properties": {"kind": {"const": kind}, **fields},
                "required": ["kind", *fields],
            }
            for kind, fields in kinds.items()
        ],
    }


def _one_of(title: str, description: str, types: Sequence[type]) -> Schema:
    found, definitions = _components(types)
    return {"$schema": DIALECT, "title": title, "description": description, "anyOf": found, "$defs": definitions}


def _components(types: Sequence[type]) -> tuple[list[Any], dict[str, Any]]:
    found, definitions = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    return list(found), dict(sorted(definitions.items()))


def main() -> None:
    """`python -m app.definitions.schemas docs` writes the files, and the AsyncAPI document with them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("docs", type=Path, help="the documentation's folder")
    docs: Path = parser.parse_args().docs
    for name, schema in schemas().items():
        (docs / FOLDER / f"{name}.json").write_text(rendered(schema), "utf-8")
    write(docs)


if __name__ == "__main__":
    main()
