"""Ids of executions that are started over HTTP: new ones in the order of time, repeated ones the same again."""

import os
import re
import uuid
from typing import Final

MAX_CHARS: Final = 200
_EXECUTION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
_WORKFLOW: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Names the ids of starts with an Idempotency-Key, uuid5(this, workflow and key); must never change.
_REPEATABLE: Final = uuid.UUID("6e6e3f0c-6f0b-5d8e-9a51-6a1c7d0b9f42")


def is_execution_id(text: str) -> bool:
    return _EXECUTION.fullmatch(text) is not None


def is_workflow_id(text: str) -> bool:
    return _WORKFLOW.fullmatch(text) is not None


def new_id(now_ms: int) -> str:
    """A UUID version 7: ids made later sort later, so that an index takes them at its end."""
    drawn = int.from_bytes(os.urandom(10), "big")
    number = (now_ms & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (drawn >> 68) << 64 | 0b10 << 62 | drawn & (1 << 62) - 1
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def repeatable_id(workflow: str, idempotency_key: str) -> str:
    """The id of every start of `workflow` with this key."""
    return str(uuid.uuid5(_REPEATABLE, f"{workflow}\x1f{idempotency_key}"))
