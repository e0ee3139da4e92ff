"""The workflow under test: a step here, one in a task process at the workers, then one effect at the ledger.

A request and a task process cost some 25 ms of a machine. Its light sister has two steps here and no effect, so that
a run can have ten times as many executions.
"""

from typing import Any, Final

from app.chaos.rig import QUEUE

WORKFLOW: Final = "chaos"
LIGHT: Final = "chaos-light"
POISON: Final = "chaos-poison"
EFFECT: Final = "store"
# Faults cost attempts; none of them may cost an execution.
RETRY: Final = {"attempts": 1000, "backoff_s": 0.05, "factor": 1.5, "max_s": 1}


def definitions(effects_url: str) -> list[dict[str, Any]]:
    """The usual load, its light sister, and the poison: a handler that crashes in every way before it ends well."""
    bad = {
        "type": "transform.python",
        "queue": QUEUE,
        "retry": RETRY,
        "timeout_s": 3,
        "with": {
            "function": "app.chaos.poison:crash",
            "mode": "process",
            "args": {"attempt": "${execution.attempt}"},
        },
    }
    effect = _effect(effects_url, "bad")
    light = {
        "id": LIGHT,
        "tasks": {
            "near": _step("source", number="${input.n}"),
            "next": {**_step("transform"), "needs": ["near"]},
        },
    }
    return [definition(effects_url), light, {"id": POISON, "tasks": {"bad": bad, EFFECT: {**effect, "needs": ["bad"]}}}]


def definition(effects_url: str) -> dict[str, Any]:
    """`near` and `far` side by side, then `store`."""
    return {
        "id": WORKFLOW,
        "tasks": {
            "near": _step("source", number="${input.n}"),
            "far": {
                "type": "transform.python",
                "queue": QUEUE,
                "retry": RETRY,
                "timeout_s": 20,
                "with": {
                    "function": "app.bench.ours.steps:crunch",
                    "mode": "process",
                    "args": {"number": "${input.n}"},
                },
            },
            EFFECT: {**_effect(effects_url, "far"), "needs": ["near", "far"]},
        },
    }


def _step(function: str, **arguments: str) -> dict[str, Any]:
    """A step that its owner carries out in its own loop."""
    return {
        "type": "transform.python",
        "retry": RETRY,
        "timeout_s": 20,
        "with": {"function": f"app.bench.ours.steps:{function}", "args": arguments},
    }


def _effect(url: str, hashed: str) -> dict[str, Any]:
    """One request to the ledger, which names the work and what came of the task `hashed`."""
    body = {
        "execution": "${execution.id}",
        "step": EFFECT,
        "attempt": "${execution.attempt}",
        "token": "${execution.attempt}",
        "hash": f"${{string({hashed})}}",
    }
    return {"type": "sink.http", "retry": RETRY, "timeout_s": 10, "with": {"url": url, "timeout_s": 5, "body": body}}
