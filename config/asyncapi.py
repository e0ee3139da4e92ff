"""The AsyncAPI document and the schema files, written from the topics and the schemas."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from config.schemas import SCHEMAS, rendered
from config.topics import ALL_TOPICS, TopicSpec

FOLDER = "schemas"

# Which role of the service writes and which reads a topic; "outside" is whoever uses the service.
_FLOW: Mapping[str, tuple[str, str]] = {
    "device.commands": ("API, command line, outside", "fleet"),
    "device.metadata": ("fleet, replay, outside", "HTTP read model"),
    "device.telemetry": ("fleet, replay, outside", "transform"),
    "device.rollups": ("transform", "sinks, HTTP read model, outside"),
    "device.signals": ("transform", "sinks, HTTP read model, outside"),
    "device.late": ("transform", "outside"),
    "device.deadletter": ("every stage", "command line, outside"),
    "device.truth": ("fleet, replay", "scoring"),
    "workflow.definitions": ("API, engine", "engine, API, triggers, outside"),
    "workflow.commands": ("API, triggers, workers, engine", "engine"),
    "workflow.events": ("engine", "API, outside"),
    "workflow.tasks.default": ("engine", "workers"),
    "workflow.deadletter": ("engine, triggers", "API, command line, outside"),
    "cluster.members": ("nodes", "nodes, API"),
}


def document(schemas: Mapping[str, Mapping[str, Any]], topics: Sequence[TopicSpec] = ALL_TOPICS) -> dict[str, Any]:
    """AsyncAPI 3.0: a channel for each topic whose value has a schema among `schemas` (name to schema)."""
    described = [topic for topic in topics if topic.schema in schemas]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Headrace",
            "version": "1.0.0",
            "description": "Industrial telemetry on Apache Kafka. Values are JSON, keys UTF-8 text, times "
            "milliseconds since 1970 in UTC. Partitions are murmur2 of the key, as the Java client has them.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in described},
        "operations": {f"read-{topic.name}": _operation(topic) for topic in described},
        "components": {"messages": {topic.schema: _message(topic, schemas[topic.schema]) for topic in described}},
    }


def _channel(topic: TopicSpec) -> dict[str, Any]:
    binding: dict[str, Any] = {
        "bindingVersion": "0.5.0",
        "topic": topic.name,
        "topicConfiguration": {
            "cleanup.policy": topic.cleanup.split(","),
            "retention.ms": topic.retention_ms,
        },
    }
    if topic.partitions is not None:
        binding["partitions"] = topic.partitions
    flow = _FLOW.get(topic.name)
    written = f"Written by: {flow[0]}. Read by: {flow[1]}." if flow else ""
    return {
        "address": topic.name,
        "description": f"Key: {topic.key}. {written}".strip(),
        "messages": {topic.schema: {"$ref": f"#/components/messages/{topic.schema}"}},
        "bindings": {"kafka": binding},
    }


def _operation(topic: TopicSpec) -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "messages": [{"$ref": f"#/channels/{topic.name}/messages/{topic.schema}"}],
    }


def _message(topic: TopicSpec, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": topic.schema,
        "title": schema.get("title", topic.schema),
        "summary": schema.get("description", ""),
        "contentType": "application/json",
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": {"$ref": f"./{FOLDER}/{topic.schema}.json"},
        },
        "bindings": {
            "kafka": {"bindingVersion": "0.5.0", "key": {"type": "string", "description": topic.key}},
        },
    }


def rendered_document(folder: Path) -> str:
    """The text of asyncapi.yaml for the schema files in `folder`."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    head = "# Written by `python -m config.asyncapi docs` from config/topics.py and docs/schemas; a test compares.\n"
    return head + yaml.safe_dump(document(found), sort_keys=False, allow_unicode=True, width=110)


def write(docs: Path) -> list[Path]:
    """Write our own schema files and the document of all that are there; the files written."""
    folder = docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, schema in SCHEMAS.items():
        path = folder / f"{name}.json"
        path.write_text(rendered(schema), "utf-8")
        written.append(path)
    path = docs / "asyncapi.yaml"
    path.write_text(rendered_document(folder), "utf-8")
    return [*written, path]


def main() -> None:
    """`python -m config.asyncapi docs` writes the files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("docs", type=Path, help="the documentation's folder")
    write(parser.parse_args().docs)


if __name__ == "__main__":
    main()
