"""Meta-World v3 (50 manipulation tasks of a Sawyer arm) through EnvPool: MT1, MT10, MT25 and MT50.

EnvPool's tasks do not all agree with the metaworld package; `benchmarks/metaworld_check.py` compares them, and the
suite's version stamp names the tasks that the installed EnvPool is known to get wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata

import numpy as np

from mtjax.envs.base import continuous
from mtjax.envs.envpool import EnvPool, FreshEnvPool, require_envpool, require_opengl, threads_per_pool
from mtjax.envs.host import HostVectorEnv
from mtjax.suites.base import Split, Suite, TaskInfo, Version, register
from mtjax.suites.metaworld_tasks import DESCRIPTIONS, MT10, MT25, MT50, OBJECTS
from mtjax.suites.render import film

HORIZON = 500
OBSERVATION_SIZE = 39
ACTION_SIZE = 4
OPTIONS = {"partially_observable": False}

# In these tasks, EnvPool 1.2.5 and 1.2.7 move the goal further away at every reset (by 0.85 m or more), so that
# they cannot be solved from the second episode on. Each of their episodes therefore gets a new simulator.
FRESH = frozenset({"hammer", "shelf-place"})

# Differences from metaworld 3.1.1 that benchmarks/metaworld_check.py found, by EnvPool version and task. "Returns"
# are those of Meta-World's scripted policy, which succeeds in both simulators unless stated otherwise.
KNOWN_FAULTS = {
    "1.2.5": {
        "button-press-topdown-wall": "rewards are near 0",
        "dial-turn": "never succeeds",
        "door-lock": "returns are 22% above Meta-World's",
        "stick-push": "returns are 12% below Meta-World's",
    },
    "1.2.7": {
        "button-press": "returns are 11% below Meta-World's",
        "button-press-wall": "returns are 25% below Meta-World's",
        "coffee-push": "returns are 33% below Meta-World's",
        "door-lock": "returns are 22% above Meta-World's",
        "hammer": "returns are 42% above Meta-World's",
        "pick-out-of-hole": "returns are 14% above Meta-World's",
        "plate-slide-side": "returns are 30% above Meta-World's",
        "stick-push": "returns are 30% below Meta-World's",
    },
}

STEP_SECONDS = 0.0125  # of simulated time
FRAME_STEPS = 10  # steps between pictures: drawing one takes as long as 400 steps if OpenGL runs on the CPU
PICTURE = {
    "render_mode": "rgb_array",
    "render_width": 320,
    "render_height": 320,
    "render_camera_id": 2,  # Meta-World's "corner2", which is upside down
}


def make_suite(name: str, train: tuple[str, ...], held_out: tuple[str, ...] = ()) -> Suite:
    """A suite of Meta-World tasks.

    The positions of goals and objects are redrawn in every episode and observed, so evaluation on "train" already
    uses unseen goals. A held-out task is "interpolation" if it is another task with a training task's object, and
    "extrapolation" if its object is new, too.

    Args:
        name: the suite's name.
        train: task names without version, e.g. "pick-place", in task order.
        held_out: names of the held-out tasks, if any.

    Returns:
        The suite. EnvPool is imported when its environments are made, not before.
    """
    known = {task for tasks in OBJECTS.values() if set(tasks) & set(train) for task in tasks}
    splits = {
        "train": _split(train),
        "interpolation": _split(tuple(task for task in held_out if task in known)),
        "extrapolation": _split(tuple(task for task in held_out if task not in known)),
    }
    return Suite(
        name=name,
        version=_version(train + held_out),
        observation_size=OBSERVATION_SIZE,
        action=continuous(ACTION_SIZE),
        horizon=HORIZON,
        splits={label: split for label, split in splits.items() if split},
        make_vector_env=make_vector_env,
        has_success=True,
        on_device=False,
        render=render,
    )


def make_vector_env(split: Split, num_envs: int, *, seed: int) -> HostVectorEnv:
    """One EnvPool pool of ``num_envs`` environments (times the seeds) for each task of the split.

    Raises:
        ImportError: EnvPool is not installed.
    """
    require_envpool()
    threads = threads_per_pool(len(split))
    pools = tuple(
        functools.partial(
            FreshEnvPool if task in FRESH else EnvPool,
            envpool_id(task),
            seed=(seed, index),
            num_threads=threads,
            info_names={"success": "success"},
            options=OPTIONS,
        )
        for index, task in enumerate(split.tasks)
    )
    return HostVectorEnv(pools, num_envs, OBSERVATION_SIZE, continuous(ACTION_SIZE), HORIZON, ("success",))


def render(split: Split, task_index: int, policy: Callable, *, seed: int, steps: int) -> tuple[np.ndarray, float]:
    """Draw one episode of a task; the contract is :class:`mtjax.suites.base.Render`.

    Raises:
        ImportError: EnvPool is not installed.
        RuntimeError: OpenGL is not installed, or does not work.
    """
    require_opengl("Meta-World")
    pool = EnvPool(
        envpool_id(split.tasks[task_index]),
        1,
        seed=(seed, task_index),
        num_threads=1,
        options=OPTIONS | PICTURE,
    )
    frames = film(pool, lambda: _picture(pool), policy, seed=seed, steps=min(steps, HORIZON), every=FRAME_STEPS)
    return frames, 1.0 / (STEP_SECONDS * FRAME_STEPS)


def _picture(pool: EnvPool) -> np.ndarray:
    return pool.pool.render()[0][::-1, ::-1]


def envpool_id(task: str) -> str:
    """EnvPool's name for a task: "pick-place" -> "MetaWorld/PickPlace-v3"."""
    return f"MetaWorld/{''.join(word.capitalize() for word in task.split('-'))}-v3"


def _split(tasks: tuple[str, ...]) -> Split:
    return Split(tuple(TaskInfo(task, DESCRIPTIONS[task]) for task in tasks), tasks)


def _version(tasks: tuple[str, ...]) -> Version:
    try:
        installed = metadata.version("envpool")
    except metadata.PackageNotFoundError:
        installed = ""
    return Version(
        suite="2",
        simulator=f"envpool {installed or '(not installed)'}, Meta-World v3",
        reward="v2",
        horizon=HORIZON,
        goals="visible, redrawn each episode",
        success="the simulator's success flag",
        warnings=_warnings(installed, tasks),
    )


def _warnings(installed: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The known faults of these tasks in the installed EnvPool."""
    if not installed:
        return ()
    if installed not in KNOWN_FAULTS:
        return (f"EnvPool {installed} was never compared with Meta-World: run benchmarks/metaworld_check.py",)
    faults = KNOWN_FAULTS[installed]
    return tuple(f"{task}: {faults[task]} in EnvPool {installed}" for task in tasks if task in faults)


def _others(tasks: tuple[str, ...], of: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(task for task in of if task not in tasks)


for _name, _tasks, _held_out in (
    ("metaworld-mt10", MT10, _others(MT10, of=MT25)),
    ("metaworld-mt25", MT25, _others(MT25, of=MT50)),
    ("metaworld-mt50", MT50, ()),
):
    register(_name)(functools.partial(make_suite, _name, _tasks, _held_out))
for _task in MT50:
    register(f"metaworld-mt1-{_task}")(functools.partial(make_suite, f"metaworld-mt1-{_task}", (_task,)))
