"""What every test stands on: the CPU, the environment that the commands set, repeatable examples."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mtjax.launch import environment

environment.prepare()  # before jax and mujoco are imported

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# What the short job on the oldest Python runs, beside tests that carry the marker themselves: the rooms whose
# results hang on the versions of jax, flax, optax and Orbax, and which need no simulator.
TESTS = pathlib.Path(__file__).parent
SMOKE = (
    "grads/test_grads_aggregate.py",
    "networks",
    "learners/test_returns.py",
    "learners/test_normalization.py",
    "learners/test_ppo.py",
    "learners/test_replay.py",
    "learners/test_critics.py",
    "envs/test_vectorize.py",
    "envs/test_host.py",
    "training/test_checkpoint.py",
)


# Where programs are compiled often and run once or twice: XLA's optimiser would take longer than what it saves. Not
# the suites, some of which are stepped for long, and not examples in docstrings, whose digits are compared.
QUICK = ("envs", "launch", "learners", "networks", "training", "test_accelerator.py", "test_guides.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(SMOKE):
            item.add_marker(pytest.mark.smoke)


@pytest.fixture(scope="module", autouse=True)
def compile_fast(request: pytest.FixtureRequest):
    """Half the time of compiling, for programs that run slower; no number is promised at one level of optimisation."""
    quick = request.path.relative_to(TESTS).as_posix().startswith(QUICK)
    if quick:
        jax.config.update("jax_disable_most_optimizations", True)
    yield
    if quick:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def what_stays_is_not_searched():
    """jax keeps what it has traced and compiled: the garbage collector would go through all of it again and again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def registries():
    """What a test or a guide registers is forgotten after it."""
    from mtjax.grads import registry
    from mtjax.networks import arrangements, config
    from mtjax.suites import base

    tables = [registry.METHODS, base._REGISTRY, arrangements.BODIES, config.ARRANGEMENTS]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture
def key() -> jax.Array:
    """One key for tests that need any."""
    return jax.random.key(0)
