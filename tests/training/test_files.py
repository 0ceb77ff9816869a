"""Files that are whole or absent, and lines of which only the last may be torn."""

import json
import os
import stat
import subprocess
import sys

import pytest

from mtjax.training import files


def test_write_json_is_whole_or_absent(tmp_path, monkeypatch):
    path = files.write_json(tmp_path / "deep" / "a.json", {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert os.listdir(path.parent) == ["a.json"]


def test_a_torn_last_line_is_left_out_and_dropped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(files.json_line({"a": 1}) + files.json_line({"a": 2}) + b'{"a": 3')
    assert files.parse_lines(path, {"a"}) == [{"a": 1}, {"a": 2}]
    files.drop_torn_line(path)
    assert path.read_bytes() == b'{"a":1}\n{"a":2}\n'
    files.drop_torn_line(path)
    assert files.whole_lines(path) == [b'{"a":1}', b'{"a":2}']


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"b": 1}'], ids=["no JSON", "no object", "lacks a key"])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"line 2 of {path} is broken"):
        files.parse_lines(path, {"a"})


def test_no_line_holds_what_json_has_no_word_for():
    with pytest.raises(ValueError):
        files.json_line({"a": float("inf")})


def test_imports_no_jax():
    code = "import sys; import mtjax.training.files; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
