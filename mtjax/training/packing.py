"""Who is who along the seed axis S of a program: one trial with its seeds, or several trials packed side by side.

Trials that differ only in numbers which are leaves of the learner's state (its ``hyper``) and in their seeds are
the same program, so they train as rows of it: first all seeds of the first trial, then those of the second …

    program.json  metrics.jsonl  checkpoints/          of the program, while it trains
    <trials>/<name>/                                   of every trial afterwards: the folder it leaves alone
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtjax import options
from mtjax.training import record
from mtjax.training.config import RunConfig

PROGRAM = "program.json"  # in the folder of a program, where a run has its config.json
PER_ROW = ("seed", "num_seeds")  # may always differ: every row has a key of its own


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a program, trial by trial.

    Attributes:
        trials: name to configuration, in the order of the rows.
        varying: options that are leaves of the learner's state and differ between the trials.
    """

    trials: Mapping[str, RunConfig]
    varying: tuple[str, ...] = ()

    @property
    def config(self) -> RunConfig:
        """The program's configuration: the first trial's, with as many seeds as there are rows."""
        first = next(iter(self.trials.values()))
        return dataclasses.replace(first, num_seeds=sum(config.num_seeds for config in self.trials.values()))

    @property
    def seeds(self) -> tuple[int, ...]:
        """[S] the seed of every row."""
        return tuple(config.seed + i for config in self.trials.values() for i in range(config.num_seeds))

    @property
    def hyper(self) -> dict[str, np.ndarray]:
        """[S] float32 by name: what replaces the configuration's values in the learner's state."""
        values = [options.flatten(config) for config in self.trials.values()]
        repeats = [config.num_seeds for config in self.trials.values()]
        return {
            name: np.repeat(np.asarray([flat[name] for flat in values], np.float32), repeats) for name in self.varying
        }

    @property
    def slices(self) -> dict[str, slice]:
        """The rows of every trial, by its name."""
        ends = itertools.accumulate(config.num_seeds for config in self.trials.values())
        return {
            name: slice(end - config.num_seeds, end)
            for (name, config), end in zip(self.trials.items(), ends, strict=True)
        }


def alone(config: RunConfig) -> Rows:
    """The rows of an ordinary run: one trial without a name."""
    return Rows({"": config})


def pack(trials: Mapping[str, RunConfig], vmapped: Sequence[str]) -> Rows:
    """Lay trials side by side.

    Args:
        trials: name to configuration.
        vmapped: options that are leaves of the learner's state.

    Raises:
        ValueError: there is no trial, or two differ in what makes another program.
    """
    if not trials:
        raise ValueError("there is no trial to pack")
    flat = {name: options.flatten(config) for name, config in trials.items()}
    first_name, first = next(iter(flat.items()))
    varying = []
    for option in dict.fromkeys(itertools.chain(*flat.values())):
        other = next((name for name, values in flat.items() if values.get(option) != first.get(option)), None)
        if other is None or option in PER_ROW:
            continue
        if option not in vmapped:
            raise ValueError(
                f"trials {first_name!r} and {other!r} cannot be packed: they differ in {option}, which makes another "
                f"program; {', '.join((*vmapped, *PER_ROW))} may differ"
            )
        varying.append(option)
    return Rows(dict(trials), tuple(varying))


def vmapped_options(learner: Any) -> tuple[str, ...]:
    """Names of the options that are leaves of a learner's state, one value a row. Nothing is computed."""
    state = jax.eval_shape(learner.init, jax.random.key(0))
    return tuple(getattr(getattr(state, "hyper", None), "_fields", ()))


def with_hyper(state: Any, values: Mapping[str, Any]) -> Any:
    """A learner's state [S, ...] with some of its hyper-parameters replaced by ``values`` [S]."""
    if not values:
        return state
    leaves = {name: jax.numpy.asarray(value, getattr(state.hyper, name).dtype) for name, value in values.items()}
    return state._replace(hyper=state.hyper._replace(**leaves))


# ------------------------------------------------------------------------------------ telling them apart


def rows_of(tree: Any, part: slice) -> Any:
    """Some rows of a pytree whose leaves lead with [S]."""
    return jax.tree.map(lambda leaf: leaf[part], tree)


def values_of(values: Mapping[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
    """One trial's share of what a program measured: [S, ...] is cut, a scalar (its speed) is everybody's."""
    return {name: value[part] if np.ndim(value) else value for name, value in values.items()}


def lines_of(
    lines: Sequence[Mapping[str, Any]], rows: Rows, trial: str, lost: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One trial's share of a program's record.

    Args:
        lines: as :func:`mtjax.training.record.read` returns them.
        rows: of the program.
        trial: whose share.
        lost: the message of every trial that diverged: the record of such a trial ends with it, and those of
            others do not have it.
    """
    lost = lost or {}
    part, own = rows.slices[trial], []
    others = {message for name, message in lost.items() if name != trial}
    for line in lines:
        if line["kind"] == "event" and line["message"] in others:
            continue
        own.append({**line, "values": values_of(line["values"], part)} if "values" in line else dict(line))
        if trial in lost and line.get("message") == lost[trial]:
            break
    return own


def copy_record(lines: Sequence[Mapping[str, Any]], folder: pathlib.Path, *, tensorboard: bool) -> None:
    """Write a trial's share of a record into its own folder."""
    with record.Recorder(folder, record.task_names(lines), tensorboard) as recorder:
        for line in lines:
            line = dict(line)
            kind = line.pop("kind")
            if kind == "train":
                recorder.train(**line)
            elif kind == "evaluation":
                names = line.pop("tasks", None)
                recorder.evaluation(**line, task_names=names)
            elif kind == "event":
                recorder.event(**line)


def load_program(folder: str | os.PathLike) -> Rows:
    """The rows of the program that a folder holds.

    Raises:
        ValueError: it holds none, or one that cannot be read.
    """
    path = pathlib.Path(folder) / PROGRAM
    if not path.is_file():
        raise ValueError(f"{folder} is not a packed program: it has no {PROGRAM}")
    try:
        saved = json.loads(path.read_text())
        trials = {name: options.from_dict(RunConfig(), values) for name, values in saved["trials"].items()}
        return pack(trials, tuple(saved["vmapped"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def describe_program(rows: Rows) -> dict[str, Any]:
    """What ``program.json`` holds."""
    trials = {name: dataclasses.asdict(config) for name, config in rows.trials.items()}
    return {"trials": trials, "vmapped": list(rows.varying)}
