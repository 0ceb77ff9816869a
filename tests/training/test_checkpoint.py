"""Checkpoints: a killed run, or one whose disk fails, resumes from the newest good state, bit for bit."""

import asyncio
import gc
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore

from mtjax.training import checkpoint, lock
from mtjax.training.checkpoint import Checkpointer, CheckpointError, MismatchError


class State(NamedTuple):
    params: dict
    optimizer: tuple
    key: jax.Array
    done: jax.Array
    count: jax.Array
    empty: jax.Array
    nothing: None = None


def make_state(seed: int = 0, width: int = 3) -> State:
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {"w": jax.random.normal(keys[0], (2, width)), "h": jnp.full((3,), 1 / 3, jnp.bfloat16)}
    done = jax.random.bernoulli(keys[1], 0.5, (7,))
    return State(params, optax.adam(1e-3).init(params), keys, done, jnp.int32(2**31 - 1 - seed), jnp.zeros((3, 0)))


def bits(state: State) -> list[bytes]:
    def raw(leaf: jax.Array) -> bytes:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return [raw(leaf) for leaf in jax.tree.leaves(state)]


ABSTRACT = jax.eval_shape(make_state)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """A run with the steps 100 (seed 1), 200 (seed 2) and 300 (seed 3)."""
    run = tmp_path_factory.mktemp("run")
    with Checkpointer(run) as checkpointer:
        for i in (1, 2, 3):
            checkpointer.save(100 * i, make_state(i), {"env_steps": 100 * i})
    return run


@pytest.fixture
def run(saved, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != checkpoint.MANIFEST)
    return max(files, key=lambda path: path.stat().st_size)


def test_every_bit_and_type_comes_back(run):
    with Checkpointer(run) as checkpointer:
        step, state, host = checkpointer.restore(ABSTRACT)
    assert (step, host) == (300, {"env_steps": 300})
    assert isinstance(state, State) and jax.tree.structure(state) == jax.tree.structure(make_state())
    assert bits(state) == bits(make_state(3))
    assert checkpoint.describe(state) == checkpoint.describe(make_state(3))


def test_nothing_saved_is_nothing_restored(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(ABSTRACT) is None and checkpointer.skipped == []
        assert checkpointer.latest_step is None


def test_steps_beyond_int32_and_donation(tmp_path):
    # A Python int counts steps; and the caller donates the state's buffers right after save returns.
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpointer(tmp_path) as checkpointer:
        big = jnp.arange(2_000_000, dtype=jnp.float32)
        checkpointer.save(5_000_000_000, big)
        jax.block_until_ready(overwrite(big))
        step, restored, _ = checkpointer.restore(jax.ShapeDtypeStruct((2_000_000,), jnp.float32))
    assert step == 5_000_000_000
    np.testing.assert_array_equal(restored, np.arange(2_000_000, dtype=np.float32))


def test_only_the_newest_are_kept_and_old_saves_are_refused(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3, 4):
            checkpointer.save(step, jnp.float32(step))
        for step in (3, 4):
            with pytest.raises(CheckpointError, match="already holds step 4"):
                checkpointer.save(step, jnp.float32(step))
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
        assert checkpointer.restore(jax.ShapeDtypeStruct((), jnp.float32), step=3)[1] == 3.0
        assert checkpointer.restore(jax.ShapeDtypeStruct((), jnp.float32))[0] == 4


def truncate(folder):
    path = largest_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_bit_of_manifest(folder):
    path = folder / checkpoint.MANIFEST
    path.write_text(path.read_text().replace("float32[2, 3]", "float32[2, 7]"))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


FAULTS = {
    "bytes, not": truncate,
    "has changed since": flip_bit,
    "is missing": lambda folder: largest_file(folder).unlink(),
    "no manifest": lambda folder: (folder / checkpoint.MANIFEST).unlink(),
    "manifest is unreadable": lambda folder: os.truncate(folder / checkpoint.MANIFEST, 40),
    "manifest is damaged": flip_bit_of_manifest,
    "no manifest, so its save was interrupted": empty,
}


@pytest.mark.parametrize("reason", FAULTS)
def test_damage_falls_back_to_the_newest_good_one(run, reason):
    FAULTS[reason](run / "checkpoints" / "300")
    with Checkpointer(run) as checkpointer:
        with pytest.warns(UserWarning, match=rf"300: .*{reason}.*using 200"):
            step, state, host = checkpointer.restore(ABSTRACT)
        assert step == 200 and host == {"env_steps": 200} and bits(state) == bits(make_state(2))
        assert [step for step, _ in checkpointer.skipped] == [300] and reason in checkpointer.skipped[0][1]
        assert (run / "checkpoints" / "quarantine" / "300").is_dir()
        # What Orbax does silently: refuse a step that is not newer than the damaged one.
        checkpointer.save(250, make_state(9))
        assert checkpointer.restore(ABSTRACT)[0] == 250
    assert bits(Checkpointer(run).restore(ABSTRACT)[1]) == bits(make_state(9))


def test_all_damaged_is_named_and_nothing_is_loaded(run):
    for step in (100, 200, 300):
        flip_bit(run / "checkpoints" / str(step))
    with Checkpointer(run) as checkpointer:
        with pytest.warns(UserWarning, match="none is usable"):
            assert checkpointer.restore(ABSTRACT) is None
        assert [step for step, _ in checkpointer.skipped] == [300, 200, 100]
        checkpointer.save(50, make_state())
        assert checkpointer.restore(ABSTRACT)[0] == 50


def test_read_only_changes_nothing(run):
    flip_bit(run / "checkpoints" / "300")
    (run / "checkpoints" / "400.orbax-checkpoint-tmp").mkdir()
    before = sorted(run.rglob("*"))
    with Checkpointer(run, read_only=True) as checkpointer:
        with pytest.warns(UserWarning, match="using 200"):
            assert checkpointer.restore(ABSTRACT)[0] == 200
        with pytest.raises(CheckpointError, match="read-only"):
            checkpointer.save(500, make_state())
    assert sorted(run.rglob("*")) == before


def test_what_is_being_saved_is_not_called_damaged(run):
    """A step without its seal is half written, of a run that was killed; of one at work it will be whole."""
    (run / "checkpoints" / "300" / checkpoint.MANIFEST).unlink()
    with lock.lock(run, "run"), Checkpointer(run, read_only=True) as reader, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reader.restore(ABSTRACT)[0] == 200 and reader.skipped == []
    with Checkpointer(run, read_only=True) as reader, pytest.warns(UserWarning, match="using 200"):
        assert reader.restore(ABSTRACT)[0] == 200


@pytest.mark.parametrize("moment", ["verify", "restore"])
def test_a_reader_beside_a_writer_that_keeps_one(run, monkeypatch, moment):
    """While it looks, the step that it took for cut off is sealed, and the older one, its last resort, is gone."""
    folder = run / "checkpoints"
    shutil.rmtree(folder / "100")
    (folder / "300" / checkpoint.MANIFEST).rename(run / "seal")
    moved = []

    def writer_moves_on():
        if not moved:
            moved.append((run / "seal").rename(folder / "300" / checkpoint.MANIFEST))
            shutil.rmtree(folder / "200")

    verify, load = checkpoint.verify, Checkpointer.load

    def verified(place, step):
        if moment == "verify" and step == 200:
            writer_moves_on()
        return verify(place, step)

    def loaded(self, step, abstract):
        writer_moves_on()
        return load(self, step, abstract)

    monkeypatch.setattr(checkpoint, "verify", verified)
    monkeypatch.setattr(Checkpointer, "load", loaded)
    with Checkpointer(run, read_only=True) as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the first look
        step, state, _ = reader.restore(ABSTRACT)
    assert step == 300 and bits(state) == bits(make_state(3)) and reader.skipped == []


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s._replace(params={**s.params, "w": jnp.zeros(9)}), r"\['w'\] is float32\[2, 3\] there"),
        (lambda s: s._replace(count=jnp.float32(0)), r"\.count is int32\[\] there and float32\[\] here"),
        (lambda s: s._replace(nothing=jnp.zeros(2)), r"\.nothing is absent there and float32\[2\] here"),
        (lambda s: s._replace(key=jax.random.key_data(s.key)), r"\.key is key<fry>\[4\] there"),
    ],
)
def test_another_pytree_is_refused_by_name(run, change, message):
    # Orbax would cast a dtype silently; a changed network must not be half loaded, nor be called damage.
    with Checkpointer(run) as checkpointer, pytest.raises(MismatchError, match=message):
        checkpointer.restore(jax.eval_shape(lambda: change(make_state())))
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["100", "200", "300"]


def test_what_cannot_be_saved_is_named(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(TypeError, match=r"\['name'\] of the state is a str"):
            checkpointer.save(1, {"name": "ant"})
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpointer.save(1, jnp.zeros(2), {"array": np.zeros(2)})
        checkpointer.save(1, jnp.zeros(2))


def test_writes_that_end_after_a_failed_save_print_nothing(tmp_path, monkeypatch):
    """What Orbax does when one of several writes fails: the others end when their event loop is closed."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, jnp.zeros(2))
    promise, written = tensorstore.Promise.new()

    async def write():
        await written

    async def fail():
        await asyncio.sleep(0)
        raise OSError(28, "No space left on device")

    async def save():
        await asyncio.gather(write(), fail())

    loop = asyncio.new_event_loop()
    with pytest.raises(OSError, match="No space left"):
        loop.run_until_complete(save())
    loop.close()
    promise.set_result(None)
    assert not told

    class Unfinished:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    thing = Unfinished()
    del thing
    gc.collect()
    assert len(told) == 1  # what is not Orbax's is told as before


def test_reading_logs_nothing(tmp_path, caplog):
    """Orbax warns that what is opened to be read is opened to be read: in a notebook, at every look at a run."""
    with Checkpointer(tmp_path) as saver:
        saver.save(1, make_state(1))
    caplog.set_level(logging.WARNING, logger="absl")  # as in a program that does not call environment.prepare()
    with Checkpointer(tmp_path, read_only=True) as saver:
        assert saver.restore(make_state(0))[0] == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_full_disk_is_an_error_and_not_the_end(tmp_path, caplog):
    # A limit on the size of a file stands for the full disk: both fail in the middle of a write.
    state = jax.random.normal(jax.random.key(0), (300_000,))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            with pytest.raises(CheckpointError, match="checkpoint 2 could not be written"):
                checkpointer.save(2, state)
                checkpointer.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
        assert not [record for record in caplog.records if record.exc_info]  # Orbax's threads log what we raise
        checkpointer.save(3, state)
        assert checkpointer.restore(jax.ShapeDtypeStruct(state.shape, state.dtype))[0] == 3


SAVE_FOREVER = """
    import multiprocessing, os, signal, sys, time

    def save_forever(run, pipe):
        import jax, jax.numpy as jnp
        from mtjax.training.checkpoint import Checkpointer
        checkpointer = Checkpointer(run)
        for step in range(1, 10_000):
            checkpointer.save(step, {"x": jnp.full((50_000,), step, jnp.int32), "key": jax.random.key(step)})
            pipe.send(step)  # started, and every step before it is sealed

    if __name__ == "__main__":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mtjax.training.checkpoint"])
        for attempt in range(int(sys.argv[2])):
            ours, theirs = context.Pipe()
            process = context.Process(target=save_forever, args=(f"{sys.argv[1]}/{attempt}", theirs))
            process.start()
            while ours.recv() < 3:
                pass
            time.sleep(0.013 * attempt)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            last = 3
            theirs.close()
            while ours.poll():
                try:
                    last = ours.recv()
                except EOFError:
                    break
            print(attempt, last, flush=True)
"""


def test_kill_during_a_save(tmp_path):
    # kill -9 at any moment: what is restored is whole, and no older than the last sealed step.
    script = tmp_path / "save_forever.py"
    script.write_text(textwrap.dedent(SAVE_FOREVER))
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "5"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    abstract = jax.eval_shape(lambda: {"x": jnp.zeros((50_000,), jnp.int32), "key": jax.random.key(0)})
    for attempt, last in (map(int, line.split()) for line in done.stdout.splitlines()):
        with Checkpointer(tmp_path / str(attempt)) as checkpointer:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the step that the kill interrupted, where it got that far
                step, state, _ = checkpointer.restore(abstract)
            assert step >= last - 1, checkpointer.skipped
            assert (state["x"] == step).all()
            assert (jax.random.key_data(state["key"]) == jax.random.key_data(jax.random.key(step))).all()
            checkpointer.save(step + 1, state)
            checkpointer.wait()
            assert not list(checkpointer.folder.glob("*tmp*"))
