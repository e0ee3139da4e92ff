"""Which partition owns an execution: what must be counted together lives together.

An execution id that ends in `-pN` is placed on partition N; one of a Kafka trigger, `topic-partition-offset`, on
the partition of its record; any other by murmur2 of itself. Whoever makes an id for a workflow with a
concurrency key or a rate therefore adds the partition of that key.
"""

import re
from typing import Final

from app.domain.murmur2 import partition_for

# Why a command is refused that comes on another partition than its execution's.
WRONG_PARTITION: Final = "wrong_partition"
_PLACED: Final = re.compile(r"-p(\d{1,6})$")
_OF_RECORD: Final = re.compile(r"^.+-(\d{1,6})-\d+$")


def partition_of(execution_id: str, partitions: int) -> int:
    """The partition of `workflow.commands` and `workflow.events` that an execution lives on."""
    found = _PLACED.search(execution_id)
    if found is None and not _is_uuid(execution_id):
        found = _OF_RECORD.match(execution_id)
    if found is not None and (placed := int(found[1])) < partitions:
        return placed
    return partition_for(execution_id.encode(), partitions)


def placed(execution_id: str, routing_key: str, partitions: int) -> str:
    """The same id, with the partition of `routing_key` in it."""
    return f"{execution_id}-p{partition_for(routing_key.encode(), partitions)}"


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-"
