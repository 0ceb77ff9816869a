"""Meshes: a layout that does not fit is refused before anything is compiled; one that fits changes no number."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from mtjax import options
from mtjax.launch import presets
from mtjax.training import meshes
from mtjax.training.meshes import ONE, Layout

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = presets.configure("gridworld-two-rooms", num_envs=6, num_seeds=4, rollout_length=8, num_minibatches=4)
SAC = presets.configure("gridworld-two-rooms", learner="sac", num_envs=6, batch_size=9)


@dataclasses.dataclass
class Suite:
    """What is asked of a suite here."""

    name: str = "somewhere"
    on_device: bool = True


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("", ONE),
        ("seed:4", Layout(4, 1)),
        (" env:2 , seed:4", Layout(4, 2)),
        ("seed:1,env:1", ONE),
    ],
)
def test_layouts_that_are_understood(text, layout):
    assert meshes.parse(text) == layout
    assert meshes.parse("" if layout == ONE else str(layout)) == layout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds:4", "mesh 'seeds:4': unknown axis 'seeds'; did you mean seed?"),
        ("task:2", "mesh 'task:2': unknown axis 'task'; known: env, seed"),
        ("4", "mesh '4': unknown axis '4'; known: env, seed"),
        ("seed:2,seed:2", "mesh 'seed:2,seed:2' names the axis seed twice"),
        ("seed", "mesh 'seed': 'seed' has no number of devices; write e.g. seed:4,env:2"),
        ("seed:", "mesh 'seed:': 'seed:' has no number of devices; write e.g. seed:4,env:2"),
        ("env:0", "mesh 'env:0': 'env:0' has no number of devices; write e.g. seed:4,env:2"),
        ("env:-2", "mesh 'env:-2': 'env:-2' has no number of devices; write e.g. seed:4,env:2"),
        ("env:2.5", "mesh 'env:2.5': 'env:2.5' has no number of devices; write e.g. seed:4,env:2"),
    ],
)
def test_layouts_that_are_not(text, message):
    with pytest.raises(ValueError) as found:
        meshes.parse(text)
    assert str(found.value) == message


@pytest.mark.parametrize(
    ("text", "config", "devices", "message"),
    [
        ("seed:4,env:2", CONFIG, 4, "mesh seed:4,env:2 needs 8 devices, but there are 4"),
        ("seed:3", CONFIG, 3, "mesh seed:3: seed:3 does not divide num_seeds 4"),
        ("env:4", CONFIG, 4, "mesh env:4: env:4 does not divide num_envs 6"),
        (
            "env:2",
            options.replace(CONFIG, {"num_minibatches": 16}),
            2,
            "mesh env:2: env:2 does not divide a minibatch, rollout_length × num_envs / num_minibatches = 3",
        ),
        ("env:2", SAC, 2, "mesh env:2: env:2 does not divide batch_size 9"),
    ],
)
def test_layouts_that_do_not_fit(text, config, devices, message):
    with pytest.raises(ValueError) as found:
        meshes.check(meshes.parse(text), config, Suite(), devices=devices)
    assert str(found.value) == message


def test_layouts_that_fit():
    for text, devices in (("", 1), ("", 8), ("seed:4,env:2", 8), ("seed:2,env:3", 6)):
        meshes.check(meshes.parse(text), CONFIG, Suite(), devices=devices)
    meshes.check(meshes.parse("env:3"), SAC, Suite(), devices=3)
    meshes.check(ONE, CONFIG, Suite(on_device=False), devices=8)


def test_simulators_on_the_host_are_not_divided():
    suite = Suite("metaworld-mt10", on_device=False)
    for text in ("env:2", "seed:2"):
        with pytest.raises(ValueError, match="'metaworld-mt10' runs its simulators on the host and uses one device"):
            meshes.check(meshes.parse(text), CONFIG, suite, devices=2)
    with pytest.raises(ValueError, match="on the host, in one process, not 2"):
        meshes.check(ONE, CONFIG, suite, devices=2, processes=2)


def test_several_processes_must_say_how():
    with pytest.raises(ValueError, match="2 processes have 4 devices: divide the run among them, e.g. --mesh=env:4"):
        meshes.check(ONE, CONFIG, Suite(), devices=4, processes=2)


def test_a_run_on_a_mesh_is_the_run_on_one_device():
    """On eight fake devices: PPO and SAC, rollouts without communication, and runs that move between meshes."""
    here = pathlib.Path(__file__).parent
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(here)]),
    }
    done = subprocess.run([sys.executable, here / "meshed.py"], env=environment, capture_output=True, text=True)
    assert "meshed ok" in done.stdout, done.stderr[-5000:]
