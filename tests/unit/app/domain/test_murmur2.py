"""The partitioner is the Java client's: hash and partition of the vector in tests/data/murmur2.tsv.

The vector was written by `python -m tests.helpers.murmur2`, which asks `Utils.murmur2` of kafka-clients 4.1.0.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.murmur2 import murmur2, partition_for
from tests.helpers.murmur2 import VECTOR, NoJava, java_lines, vector_keys


def line_of(key: bytes) -> str:
    unsigned = murmur2(key)
    return f"{key.hex()}\t{unsigned - (1 << 32) if unsigned >= 1 << 31 else unsigned}\t{partition_for(key, 12)}"


def test_hashes_and_partitions_are_those_of_the_vector() -> None:
    lines = VECTOR.read_text(encoding="ascii").splitlines()
    assert [line_of(bytes.fromhex(line.split("\t")[0])) for line in lines] == lines
    assert len(lines) >= 200


def test_vector_is_what_java_says_today() -> None:
    try:
        said = java_lines(vector_keys())
    except NoJava as missing:
        pytest.skip(str(missing))
    assert said == VECTOR.read_text(encoding="ascii").splitlines()


def test_empty_key_hashes_as_in_java() -> None:
    # Utils.murmur2(new byte[0]), which a line of the vector cannot hold.
    assert murmur2(b"") == 275_646_681


@given(st.binary(max_size=40), st.integers(1, 500))
def test_partition_is_one_of_them(key: bytes, partitions: int) -> None:
    assert 0 <= partition_for(key, partitions) < partitions
    assert 0 <= murmur2(key) < 1 << 32
