"""One process at a time on a run's folder; what the system refuses to write is said with the file's name."""

import errno
import signal
import subprocess
import sys

import numpy as np
import pytest

from mtjax.training import lock, record, run
from mtjax.training.config import RunConfig

HOLD = """
import sys, time
from mtjax.training import lock
with lock.lock(sys.argv[1], "run"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert lock.held(tmp_path)
        message = f"{tmp_path} is in use by process {holder.pid} on .*: only one process at a time may use a run"
        with pytest.raises(ValueError, match=message):
            run.train(RunConfig(suite="gridworld-two-rooms"), tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [lock.FILE]  # nothing was begun
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert not lock.held(tmp_path)
    with lock.lock(tmp_path, "run"), lock.lock(tmp_path, "run"):  # the thread that holds it may take it again
        assert lock.held(tmp_path)
    assert not lock.held(tmp_path)


def test_a_full_disk_names_the_record(tmp_path):
    recorder = record.Recorder(tmp_path, ["a"], tensorboard=False)
    recorder._file.close()
    recorder._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as caught:
        recorder.train(1, 1, 0.1, {"return": np.ones((1, 1))})
    recorder._file.close()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / record.FILE)


def test_tensorboard_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch):
    """The record, which is the source of truth, goes on."""
    with record.Recorder(tmp_path, ["a"]) as recorder:

        def refuse(event):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(recorder._board._writer, "write", refuse)
        with pytest.warns(UserWarning, match="tensorboard is no longer written: No space left"):
            recorder.train(1, 1, 0.1, {"return": np.ones((1, 1))})
        recorder.train(2, 2, 0.2, {"return": np.ones((1, 1))})
    assert [line["step"] for line in record.read(tmp_path)] == [0, 1, 2]


def test_a_reader_leaves_the_line_in_the_making(tmp_path):
    """An evaluation beside a training run must not cut what the other is just writing."""
    record.Recorder(tmp_path, ["a"], tensorboard=False).close()
    path = tmp_path / record.FILE
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "st')
    record.Recorder(tmp_path, ["a"], tensorboard=False, alone=False).close()
    assert path.read_bytes().endswith(b'"st')
    record.Recorder(tmp_path, ["a"], tensorboard=False).close()
    assert path.read_bytes().endswith(b"}\n")
