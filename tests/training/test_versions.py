"""Versions and whole JSON files: a result without them cannot be compared or trusted."""

import json
import os
import stat
import subprocess

import jax
import pytest

from mtjax.training import versions


def test_versions_name_everything_that_computes(tmp_path):
    found = versions.write(tmp_path)
    assert found == json.loads((tmp_path / "versions.json").read_text())
    assert found["packages"]["jax"] == jax.__version__
    assert found["packages"]["orbax"] and "envpool" in found["packages"]
    assert found["device"]["count"] == jax.device_count()
    assert found["python"].startswith("3.")


def test_a_missing_package_is_none():
    assert versions._installed("no-such-package-of-anyone") is None


def test_git_says_commit_and_dirt(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "mtjax"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert versions._git(package) is None
    git("init")
    assert versions._git(package) is None  # in a checkout, but not of it
    git("add", "mtjax")
    git("commit", "-m", "first")
    assert versions._git(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "__init__.py").write_text("x = 1\n")
    assert versions._git(package)["dirty"] is True


def test_write_json_is_whole_or_absent(tmp_path, monkeypatch):
    path = versions.write_json(tmp_path / "deep" / "a.json", {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(ValueError):
        versions.write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        versions.write_json(path, {"a": object()})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        versions.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert os.listdir(path.parent) == ["a.json"]
