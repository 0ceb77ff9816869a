"""Versions: a result without them cannot be compared or trusted."""

import json
import subprocess

import jax

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
