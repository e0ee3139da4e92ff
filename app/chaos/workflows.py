"""The workflow under test: a step here, one in a task process at the workers, then one effect at the ledger."""

from typing import Any, Final

from app.chaos.rig import QUEUE

WORKFLOW: Final = "chaos"
EFFECT: Final = "store"
# Faults cost attempts; none of them may cost an execution.
RETRY: Final = {"attempts": 1000, "backoff_s": 0.05, "factor": 1.5, "max_s": 1}


def definition(effects_url: str) -> dict[str, Any]:
    """`near` and `far` side by side, then `store`."""
    return {
        "id": WORKFLOW,
        "tasks": {
            "near": {
                "type": "transform.python",
                "retry": RETRY,
                "timeout_s": 20,
                "with": {"function": "app.bench.ours.steps:source", "args": {"number": "${input.n}"}},
            },
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
            EFFECT: {
                "type": "sink.http",
                "needs": ["near", "far"],
                "retry": RETRY,
                "timeout_s": 10,
                "with": {
                    "url": effects_url,
                    "timeout_s": 5,
                    "body": {
                        "execution": "${execution.id}",
                        "step": EFFECT,
                        "attempt": "${execution.attempt}",
                        "token": "${execution.attempt}",
                        "hash": "${string(far)}",
                    },
                },
            },
        },
    }
