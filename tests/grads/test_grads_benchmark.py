"""`benchmarks/grads.py`: that it imports, and that its header says what its rows do. Nothing is measured here."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

# In a process of its own: its flags would meet those of other programs here.
CODE = """
import sys
sys.path.insert(0, "benchmarks")
import grads as benchmark
from absl import flags
flags.FLAGS(["grads.py"])
assert flags.FLAGS.rounds == 15

from mtjax import grads
for name in benchmark.METHODS:
    assert grads.get(benchmark.spelled(name, 3)[0])
ours, theirs = benchmark.spelled("fixed", 4)
assert ours == "fixed((0.25, 0.5, 0.75, 1.0))" and theirs == "Constant(torch.tensor((0.25, 0.5, 0.75, 1.0)))"

def row(tasks, name, whole, theirs, solver, solvers, size="100000", between=None):
    ms = {"floor": 1.0, "whole": whole, "solver": solver, "torch whole": theirs, "torch solver": solvers}
    return benchmark.row_of(tasks, size, "iid", name, {k: v for k, v in ms.items() if v is not None}, between)

rows = [row("50", "cagrad", 1.0, 3.0, 0.1, 2.0), row("50", "nash_mtl", 1.0, 30.0, 0.1, 29.0),
        row("10", "krum", 1.0, 0.8, 0.2, 0.1, between=(0.7, 0.9)), row("50", "mgda", 1.5, 2.0, 0.2, 0.1, "1000000"),
        row("50", "upgrad", 1.0, 3.0, 0.1, 0.4)]
assert [r[-1] for r in rows] == [
    "whole below 5 times", "", "slower, surely, solver slower", "solver slower, over the floor",
    "whole below 5 times, solver below 5 times"]
assert [r[-3] for r in rows] == ["67", "97", "", "", "13"] and rows[2][-2] == "0.70 to 0.90"
assert row("10", "krum", 1.0, 0.9, 0.2, 0.4, between=(0.7, 1.1))[-1] == "slower"
values = [0.1 * n for n in range(9)]
from common import interval
assert interval(values) == (values[1], values[7]) and interval(values[:5]) == (0.0, values[4])
text = benchmark.promise(rows)
assert "80% of its call or more, the whole call in 1 of 1 cells (below: 0)" in text, text
assert "50 to 80%, the whole call in 0 of 1 cells (below: 1: cagrad (50 × 100,000, iid: 3.0))" in text, text
assert "where it takes less, the whole call in 0 of 1 cells (below: 1: upgrad (50 × 100,000, iid: 3.0))" in text, text
assert "the solver alone in 2 of 3 cells (below: 1: upgrad (50 × 100,000, iid: 4.0))" in text, text
assert benchmark.promise([row("50", "cagrad", 1.0, None, 0.1, None)]) == ""
text = benchmark.summary(rows, "0")
assert "slower than TorchJD's in this many of 5 cells: 1: krum (10 × 100,000, iid: 0.8)." in text, text
assert "Surely so, by the interval of the ratios of the turns: 1: krum (10 × 100,000, iid: 0.70 to 0.90)." in text, text
assert "this many of 5 cells: 2: krum (10 × 100,000, iid: 0.5); mgda (50 × 1,000,000, iid: 0.5)." in text, text
assert benchmark.share(2.0, 1.5) == 25.0

import jax
state, metrics = jax.eval_shape(benchmark.ppo_update(benchmark.SURGEONS[-1], 3))
assert metrics["grads/weight"].shape == (3,)
print("benchmark ok")
"""


def test_the_benchmark_says_what_its_rows_do():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert "benchmark ok" in done.stdout, done.stderr[-3000:]
