"""Run commands in this process as a user would type them."""

from __future__ import annotations

import dataclasses

import pytest


@dataclasses.dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """A function that runs ``mtjax-train`` (or another main) with arguments in an empty folder."""
    from mtjax.launch import train

    monkeypatch.chdir(tmp_path)

    def run(*arguments, main=train.main, program="mtjax-train") -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([program, *map(str, arguments)])
        captured = capsys.readouterr()
        return Result(stopped.value.code or 0, captured.out, captured.err)

    return run
