"""The shapes of answers about workflows, with examples."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.http.problems import FieldProblem

_DEFINITION: dict[str, Any] = {
    "id": "press-overheat",
    "triggers": [{"http": {}}],
    "tasks": {
        "worst": {"type": "transform.cel", "with": {"from": "input.rows", "filter": "row.temperature > 90"}},
        "notify": {
            "type": "sink.http",
            "needs": ["worst"],
            "when": "size(worst) > 0",
            "with": {"url": "https://example.com/alarm"},
        },
    },
}
DEFINITION_YAML = """\
id: press-overheat
triggers: [{http: {}}]
tasks:
  worst:  {type: transform.cel, with: {from: input.rows, filter: "row.temperature > 90"}}
  notify: {type: sink.http, needs: [worst], when: "size(worst) > 0", with: {url: "https://example.com/alarm"}}
"""
DEFINITION_JSON = _DEFINITION
_VERSION: dict[str, Any] = {"id": "press-overheat", "version": "3f1c9a72b0de", "registered_at": 1763689000000}


class VersionView(BaseModel):
    """One immutable version of a workflow; its name is the hash of its content."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_VERSION, "latest": True}]})

    id: str
    version: str
    registered_at: int = Field(description="When it was first registered, ms UTC.")
    latest: bool = Field(description="What a start without a version means.")


class WorkflowView(VersionView):
    """One workflow by its latest version."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{**_VERSION, "latest": True, "description": "", "versions": 2, "tasks": ["worst", "notify"]}]
        }
    )

    description: str
    versions: int = Field(description="How many there are.")
    tasks: list[str]


class DefinitionView(VersionView):
    """One version with its definition as it was written."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_VERSION, "latest": True, "definition": _DEFINITION}]})

    definition: dict[str, Any]


class RegisteredView(VersionView):
    """The version is on `workflow.definitions`, acknowledged by every in-sync replica."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_VERSION, "latest": True, "created": True, "warnings": []}]}
    )

    created: bool = Field(description="False when this content was the latest version already, or only checked.")
    warnings: list[FieldProblem] = Field(description="What is allowed and probably not meant.")
