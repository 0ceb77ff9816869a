"""The script that a person with a GPU runs: it must not fail there for what could have been seen here."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "accelerator.sh"


@pytest.fixture(scope="module")
def accelerator():
    """The program that the script starts."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_accelerator", SCRIPT.with_suffix(".py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # which dataclasses look up
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))
        sys.modules.pop("benchmark_accelerator", None)


def tables(text):
    """The rows of every Markdown table, cells without spaces around them, headers and rules left out."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block[2:]] for block in blocks]


def number(cell):
    return float(cell.replace(",", ""))


def test_everything_that_is_measured(accelerator, capsys):
    accelerator.main(["--quick", "--platform=cpu"])
    text = capsys.readouterr().out
    speeds, gradients = tables(text)
    assert [(row[0], row[2]) for row in speeds] == [("gridworld-two-rooms", "2")]
    for _, _, _, compiling, memory, rollout, loop in speeds:
        # No comparison of the two: on a busy machine a rollout may take longer than rollout and update together.
        assert min(number(compiling), number(rollout), number(loop)) > 0 and memory.endswith("B")
    ((tasks, parameters, *times),) = gradients
    assert (tasks, parameters) == ("3", "100") and all(number(ms) >= 0 for ms in times)
    assert "matrix products in precision default" in text and "jax " in text


def test_what_the_time_does_not_suffice_for(accelerator, capsys):
    accelerator.main(["--quick", "--platform=cpu", "--minutes=0"])
    speeds, gradients = tables(capsys.readouterr().out)
    assert all(row[3:] == ["no time"] * 4 for row in speeds) and gradients[0][2:] == ["no time"] * 2


def test_the_suites_are_there(accelerator):
    """A name that has changed would be found out after minutes, on somebody else's machine."""
    from mtjax import suites

    assert set(accelerator.FULL.envs) <= set(suites.names())


def test_one_command(tmp_path):
    """With an environment it starts Python; without one it leaves the installation to ./start."""
    done = subprocess.run(
        ["sh", SCRIPT, "--quick"], env={"PYTHON": "echo", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(SCRIPT.with_suffix(".py")), "--quick"], done.stderr
    assert '"$here/../start" --with "$extra" python' in SCRIPT.read_text()
