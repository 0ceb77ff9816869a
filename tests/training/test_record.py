"""The record: what it loses, repeats or bends, every plot and table shows wrong."""

import gc
import json
import os
import sys
import time

import numpy as np
import pytest

from mtjax.training import record
from mtjax.training.record import Recorder

TASKS = ("walk", "run", "jump")


def write(run_dir, steps, tensorboard=False):
    with Recorder(run_dir, TASKS, tensorboard=tensorboard) as recorder:
        for step in steps:
            recorder.train(step, step // 10, step / 7, {"return": np.full((2, 3), step, np.float32)})


def steps_of(run_dir):
    return [line["step"] for line in record.read(run_dir) if line["kind"] == "train"]


def test_everything_comes_back(tmp_path):
    values = {
        "return": np.array([[1 / 3, np.nan, 1e-20], [np.inf, 2.0, 3.0]], np.float32),
        "learning_rate": np.array([3e-4, 1e-3], np.float32),
        "steps_per_second": 1234.5678901234567,
        "episodes": np.array([[1, 2, 3], [4, 5, 6]], np.int32),
        "grads/cosine": np.full((2, 3, 3), 1 / 3, np.float32),
    }
    with Recorder(tmp_path, TASKS, tensorboard=False) as recorder:
        recorder.train(5_000_000_000, 7, 1.5, values)
        recorder.evaluation(
            5_000_000_000, 2.5, split="extrapolation", mode="deterministic", final=True, episodes=50,
            values={"return": np.ones((2, 1))}, task_names=["fly"],
        )  # fmt: skip
        recorder.event(5_000_000_000, 3.0, "resumed")
    tasks, train, evaluation, event = record.read(tmp_path)
    assert record.task_names([tasks]) == TASKS
    assert (train["step"], train["update"], train["time"]) == (5_000_000_000, 7, 1.5)
    expected = values["return"].astype(np.float64)
    expected[1, 0] = np.nan  # JSON has no infinity
    np.testing.assert_array_equal(train["values"]["return"].astype(np.float32), expected.astype(np.float32))
    assert train["values"]["steps_per_second"] == 1234.5678901234567
    np.testing.assert_array_equal(train["values"]["episodes"], values["episodes"])
    np.testing.assert_array_equal(train["values"]["grads/cosine"], np.full((2, 3, 3), 0.3333))
    assert (evaluation["split"], evaluation["mode"]) == ("extrapolation", "deterministic")
    assert evaluation["final"] is True and evaluation["episodes"] == 50
    assert evaluation["tasks"] == ["fly"] and evaluation["values"]["return"].shape == (2, 1)
    assert event["message"] == "resumed"


def test_every_line_is_plain_json(tmp_path):
    # Other programs read this file: NaN is no JSON.
    with Recorder(tmp_path, TASKS, tensorboard=False) as recorder:
        recorder.train(1, 1, 0.0, {"x": np.nan, "y": np.array([np.inf])})

    def refuse(name):
        raise AssertionError(name)

    for line in (tmp_path / record.FILE).read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    write(tmp_path, [10, 20, 30])
    path = tmp_path / record.FILE
    os.truncate(path, path.stat().st_size - 5)
    assert steps_of(tmp_path) == [10, 20]
    write(tmp_path, [30])
    assert steps_of(tmp_path) == [10, 20, 30]


def test_a_broken_line_elsewhere_is_named(tmp_path):
    write(tmp_path, [10, 20])
    path = tmp_path / record.FILE
    path.write_bytes(path.read_bytes().replace(b'{"kind":"train"', b'{"kind":"tr\x00', 1))
    with pytest.raises(ValueError, match="line 2 of .*metrics.jsonl is broken"):
        record.read(tmp_path)


def test_resume_repeats_no_step(tmp_path):
    write(tmp_path, [10, 20, 30, 40])
    path = tmp_path / record.FILE
    os.truncate(path, path.stat().st_size - 5)
    assert record.truncate_after(tmp_path, 20) == 1  # 30; the torn 40 never was a line
    write(tmp_path, [30, 40])
    assert steps_of(tmp_path) == [10, 20, 30, 40]
    assert record.truncate_after(tmp_path, 0) == 4
    assert record.task_names(record.read(tmp_path)) == TASKS


def test_a_final_evaluation_outlives_an_extension(tmp_path):
    """A run that ends where it is resumed measures again; one that is extended has been there for the last time."""
    for ends in (False, True):
        folder = tmp_path / str(ends)
        with Recorder(folder, TASKS, tensorboard=False) as recorder:
            found = {"return": np.array([[1 / 3, np.nan, 2.0]])}
            recorder.evaluation(10, 1.0, split="train", mode="stochastic", final=True, episodes=5, values=found)
        assert record.truncate_after(folder, 10, ends=ends) == int(ends)
        lines = [line for line in record.read(folder) if line["kind"] == "evaluation"]
        assert len(lines) == (not ends)
        if lines:
            assert lines[0]["final"] is False and lines[0]["episodes"] == 5
            np.testing.assert_allclose(lines[0]["values"]["return"], found["return"], rtol=1e-4)


def test_an_evaluation_beside_a_resume_is_kept(tmp_path):
    """It began before the run was resumed, which has replaced the record since."""
    write(tmp_path, [10, 20])
    with Recorder(tmp_path, TASKS, tensorboard=False, alone=False) as beside:
        record.truncate_after(tmp_path, 10)
        how = {"split": "train", "mode": "deterministic", "final": False, "episodes": 1}
        beside.evaluation(10, 1.0, **how, values={"return": np.ones((1, 3))})
        assert [line["kind"] for line in record.read(tmp_path)] == ["tasks", "train", "evaluation"]


def test_the_record_of_other_tasks_is_refused(tmp_path):
    write(tmp_path, [10])
    with pytest.raises(ValueError, match=r"of the tasks \['walk', 'run', 'jump'\], not of \['swim'\]"):
        Recorder(tmp_path, ["swim"])


def test_no_record_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        record.read(tmp_path)


def board_scalars(run_dir):
    """{tag: [(step, value)]} of all of TensorBoard's event files, in order."""
    from tensorboardX.proto.event_pb2 import Event

    scalars: dict[str, list] = {}
    for path in sorted((run_dir / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):  # length (8), its checksum (4), event, its checksum (4)
            length = int.from_bytes(content[position : position + 8], "little")
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += 16 + length
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars


def test_tensorboard_shows_tasks_and_aggregates(tmp_path):
    returns = np.array([[1.0, 2.0, 6.0], [3.0, np.nan, 5.0]])
    cosine = np.broadcast_to(np.eye(3) * 0.5 + 0.5, (2, 3, 3))
    with Recorder(tmp_path, TASKS) as recorder:
        recorder.train(10, 1, 0.0, {"return": returns, "loss/policy": returns, "grads/cosine": cosine})
        recorder.train(20, 2, 0.0, {"return": np.full((2, 3), np.nan), "steps_per_second": 5.0})
        recorder.evaluation(
            20, 1.0, split="train", mode="deterministic", final=False, episodes=2, values={"return": returns}
        )
        recorder.event(20, 1.0, "stopped")
    scalars = board_scalars(tmp_path)
    assert scalars["train/return/mean"] == [(10, 3.5)]
    assert scalars["train/return/worst"] == [(10, 2.0)]
    assert scalars["train_tasks/return/walk"] == [(10, 2.0)]
    assert scalars["train_tasks/return/run"] == [(10, 2.0)]  # of the seed that has one
    assert scalars["learning/grads/cosine"] == [(10, 0.5)]
    assert scalars["learning/steps_per_second"] == [(20, 5.0)]
    assert scalars["evaluation_train_deterministic/return/median"] == [(20, 3.0)]
    assert not any(tag.startswith("learning_tasks") for tag in scalars)


def test_a_full_disk_ends_the_view_with_one_warning(tmp_path, monkeypatch):
    """And nothing is printed when the interpreter, at its end, comes across the file."""
    from tensorboardX import record_writer

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(record_writer, "open_file", lambda path: open("/dev/full", "wb"))
    monkeypatch.setattr(record, "FLUSH_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="tensorboard is no longer written: No space left on device") as warned:
        write(tmp_path, [10, 20, 30], tensorboard=True)
    gc.collect()
    assert len(warned) == 1 and not told
    assert steps_of(tmp_path) == [10, 20, 30]


def test_fifty_tasks_are_written_fast(tmp_path):
    generator = np.random.default_rng(0)
    cosine = generator.uniform(size=(4, 50, 50)).astype(np.float32)
    values = {"return": generator.uniform(size=(4, 50)), "grads/cosine": cosine}
    with Recorder(tmp_path, [f"t{i}" for i in range(50)]) as recorder:
        start = time.perf_counter()
        for step in range(10):
            recorder.train(step, step, 0.0, values)
        assert (time.perf_counter() - start) / 10 < 0.5
