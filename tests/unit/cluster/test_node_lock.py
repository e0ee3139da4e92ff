"""A data folder has one node at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.adapters.node_lock import data_folder
from app.errors import EnvironmentError_


def test_a_second_node_of_the_same_role_is_refused_and_one_of_another_role_is_not(tmp_path: Path):
    with data_folder(str(tmp_path), ("worker", "api-gateway"), wait_s=0):
        with pytest.raises(EnvironmentError_, match=r"in use by another node with the role worker \(process \d+\)"):
            data_folder(str(tmp_path), ("coordinator", "worker"), wait_s=0).__enter__()
        with data_folder(str(tmp_path), ("coordinator", "api-gateway"), wait_s=0):
            pass
    with data_folder(str(tmp_path), ("worker",), wait_s=0):
        pass


def test_a_killed_node_does_not_keep_its_folder(tmp_path: Path):
    code = (
        "import sys; from app.adapters.node_lock import data_folder\n"
        f"with data_folder({str(tmp_path)!r}, ('worker',)): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentError_, match=f"process {holder.pid}"):
            data_folder(str(tmp_path), ("worker",), wait_s=0).__enter__()
    finally:
        holder.kill()
        holder.communicate()
    with data_folder(str(tmp_path), ("worker",)):
        pass


def test_a_folder_that_cannot_be_one_is_said_in_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentError_, match="cannot be a folder for the tables"):
        data_folder(str(tmp_path / "file"), ("worker",)).__enter__()
