import errno
import os

import pytest

from torchstone import files
from torchstone.errors import WriteFailed


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "weights"
    target.write_bytes(b"old")

    def write():
        with files.writing(target) as file:
            file.write(b"half of the new")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights"]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    target = tmp_path / "checkpoint"
    target.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WriteFailed, match=r"checkpoint: No space left on device"):
        files.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(WriteFailed, match="nowhere"):
        files.write_text(tmp_path / "nowhere" / "a.txt", "x")


def test_json_round_trip_and_refusal_of_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": [1, 2.5, "é"]})
    assert files.read_json(tmp_path / "a.json") == {"b": [1, 2.5, "é"]}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert files.read_json(tmp_path / "a.json") == {"b": [1, 2.5, "é"]}


def test_rows_are_appended_one_a_line(tmp_path):
    for epoch in range(3):
        files.append_jsonl(tmp_path / "metrics.jsonl", {"epoch": epoch})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2}\n'
