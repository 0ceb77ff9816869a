"""The page of arrangements says what the code makes."""

import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    """The script that writes the page."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_arrangements", ROOT / "benchmarks" / "arrangements.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def test_numbers_of_parameters_are_current(benchmark):
    """A reader chooses by this table; after a change of the code it must be made anew."""
    lines = [line for line in benchmark.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    printed = [[cell.strip() for cell in line.strip("|").split("|")][:4] for line in lines]
    assert printed == [benchmark.count_cells(row) for row in benchmark.ROWS]


def test_counts_by_hand(benchmark):
    """Two layers of 256 and a head, by the textbook."""
    inputs, tasks = benchmark.INPUTS, benchmark.TASKS
    trunk = (inputs + tasks + 1) * 256 + 257 * 256
    head = 257 * benchmark.OUTPUTS
    assert benchmark.counts(benchmark.network_of("one_hot")) == (trunk + head, 0)
    assert benchmark.counts(benchmark.network_of("multi_head")) == (trunk, head)
    assert benchmark.counts(benchmark.network_of("independent")) == (0, trunk - tasks * 256 + head)
