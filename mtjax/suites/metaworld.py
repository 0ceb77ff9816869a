"""Meta-World v3 (50 manipulation tasks of a Sawyer arm) through EnvPool: MT1, MT10, MT25 and MT50.

Two MuJoCo simulators agree on these tasks only where `benchmarks/metaworld_check.py` says so; a task that
the installed EnvPool has wrong is named in the suite's version stamp.
"""

from __future__ import annotations

import functools
from importlib import metadata

from mtjax.envs.base import continuous
from mtjax.envs.envpool import EnvPool, require_envpool, threads_per_pool
from mtjax.envs.host import HostVectorEnv
from mtjax.suites.base import Split, Suite, TaskInfo, Version, register
from mtjax.suites.metaworld_tasks import DESCRIPTIONS, MT10, MT25, MT50

HORIZON = 500
OBSERVATION_SIZE = 39
ACTION_SIZE = 4


def make_suite(name: str, train: tuple[str, ...], extrapolation: tuple[str, ...] = ()) -> Suite:
    """A suite of Meta-World tasks.

    Goals and objects are drawn anew at every episode and shown in the observation, so evaluation on
    "train" already is on unseen goals. "extrapolation" holds tasks that are not trained on.

    Args:
        name: the suite's name.
        train: task names without version, e.g. "pick-place", in task order.
        extrapolation: names of the held-out tasks, if any.

    Returns:
        The suite. EnvPool is imported when its environments are made, not before.
    """
    splits = {"train": _split(train), "extrapolation": _split(extrapolation)}
    return Suite(
        name=name,
        version=_version(train + extrapolation),
        observation_size=OBSERVATION_SIZE,
        action=continuous(ACTION_SIZE),
        horizon=HORIZON,
        splits={label: split for label, split in splits.items() if split},
        make_vector_env=make_vector_env,
        has_success=True,
        on_device=False,
    )


def make_vector_env(split: Split, num_envs: int, *, seed: int) -> HostVectorEnv:
    """One EnvPool pool of ``num_envs`` environments (times the seeds) for each task of the split.

    Raises:
        ImportError: EnvPool is not installed.
    """
    require_envpool()
    pools = tuple(
        functools.partial(
            EnvPool,
            envpool_id(task),
            seed=[seed, index],
            num_threads=threads_per_pool(len(split)),
            info_names={"success": "success"},
            options={"partially_observable": False},
        )
        for index, task in enumerate(split.tasks)
    )
    return HostVectorEnv(pools, num_envs, OBSERVATION_SIZE, continuous(ACTION_SIZE), HORIZON, ("success",))


def envpool_id(task: str) -> str:
    """EnvPool's name of a task: "pick-place" -> "MetaWorld/PickPlace-v3"."""
    return f"MetaWorld/{''.join(word.capitalize() for word in task.split('-'))}-v3"


def _split(tasks: tuple[str, ...]) -> Split:
    return Split(tuple(TaskInfo(task, DESCRIPTIONS[task]) for task in tasks), tasks)


def _version(tasks: tuple[str, ...]) -> Version:
    try:
        installed = metadata.version("envpool")
    except metadata.PackageNotFoundError:
        installed = "(not installed)"
    return Version(
        suite="1",
        simulator=f"envpool {installed}, Meta-World v3",
        reward="v2",
        horizon=HORIZON,
        goals="visible, redrawn each episode",
        success="the simulator's success flag",
    )


for _name, _tasks in {"mt10": MT10, "mt25": MT25, "mt50": MT50}.items():
    register(f"metaworld-{_name}")(functools.partial(make_suite, f"metaworld-{_name}", _tasks))
for _task in MT50:
    register(f"metaworld-mt1-{_task}")(functools.partial(make_suite, f"metaworld-mt1-{_task}", (_task,)))
