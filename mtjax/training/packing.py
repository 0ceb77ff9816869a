"""The rows along a program's seed axis S: the seeds of one trial, or of several trials packed side by side.

Trials that differ only in their seeds and in numbers that are leaves of the learner's state (its ``hyper``, and the
constants of its gradient methods) compile to the same program, so they train as rows of it: first all seeds of the
first trial, then those of the second …

    program.json  metrics.jsonl  checkpoints/          the program's, while it trains
    <trials>/<name>/                                   every trial's, afterwards: as if it had been trained alone
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
from mtjax.grads import constants
from mtjax.training import record
from mtjax.training.config import PER_ROW, RunConfig

PROGRAM = "program.json"  # in a program's folder, in place of a run's config.json
METHODS = ("grads", "critic_grads")  # options that name methods of mtjax.grads: constants are leaves, the rest is code


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a program, trial by trial.

    Attributes:
        trials: name to configuration, in the order of the rows.
        varying: options that are, or contain, leaves of the learner's state, and differ between the trials.
    """

    trials: Mapping[str, RunConfig]
    varying: tuple[str, ...] = ()

    @property
    def config(self) -> RunConfig:
        """The program's configuration, i.e. the first trial's with as many seeds as there are rows."""
        first = next(iter(self.trials.values()))
        return dataclasses.replace(first, num_seeds=sum(config.num_seeds for config in self.trials.values()))

    @property
    def seeds(self) -> tuple[int, ...]:
        """[S] the seed of every row."""
        return tuple(config.seed + i for config in self.trials.values() for i in range(config.num_seeds))

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        """The values that replace those of ``config`` in the learner's state, as float32.

        By name, each [S], or [S, N] for a constant of N numbers: {"learning_rate": …, "grads.c": …}.
        """
        values = [_leaves(config, self.varying) for config in self.trials.values()]
        repeats = [config.num_seeds for config in self.trials.values()]
        return {
            name: np.repeat(np.asarray([flat[name] for flat in values], np.float32), repeats, axis=0)
            for name in values[0]
        }

    @property
    def slices(self) -> dict[str, slice]:
        """The rows of every trial, by name."""
        ends = itertools.accumulate(config.num_seeds for config in self.trials.values())
        return {
            name: slice(end - config.num_seeds, end)
            for (name, config), end in zip(self.trials.items(), ends, strict=True)
        }


def alone(config: RunConfig) -> Rows:
    """The rows of an ordinary run: one trial without a name."""
    return Rows({"": config})


def pack(trials: Mapping[str, RunConfig], vmapped: Sequence[str]) -> Rows:
    """Pack trials side by side.

    Args:
        trials: name to configuration.
        vmapped: options that are leaves of the learner's state.

    Raises:
        ValueError: there is no trial, two differ in an option that changes the program, or a method does not exist.
    """
    if not trials:
        raise ValueError("there are no trials to pack")
    flat = {name: options.flatten(config) for name, config in trials.items()}
    varying = []
    for option in dict.fromkeys(itertools.chain(*flat.values())):
        other = _other(flat, option)
        if other is None or option in PER_ROW:
            continue
        if option in METHODS and option not in vmapped:
            other = _other({name: method_code(values) for name, values in flat.items()}, option)
        if other and option not in vmapped:
            raise ValueError(
                f"trials {next(iter(flat))!r} and {other!r} cannot be packed: they differ in {option}, which changes "
                f"the program; only {', '.join((*vmapped, *PER_ROW))} may differ"
            )
        varying.append(option)
    return Rows(dict(trials), tuple(varying))


def _other(values: Mapping[str, Mapping[str, Any]], option: str) -> str | None:
    """The name of a trial whose value of ``option`` differs from the first trial's; None if there is none."""
    first = next(iter(values.values()))
    return next((name for name, own in values.items() if own.get(option) != first.get(option)), None)


def method_code(values: Mapping[str, Any]) -> dict[str, str]:
    """The code of the gradient methods that a flat configuration names, by option: all but their constants."""
    return {option: constants.code(values[option]) for option in METHODS if values.get(option)}


def _leaves(config: RunConfig, varying: Sequence[str]) -> dict[str, Any]:
    """The numbers in these options that are leaves of a learner's state, by the names of the leaves."""
    flat, found = options.flatten(config), {}
    for option in varying:
        if option in METHODS:
            found |= {f"{option}.{name}": value for name, value in constants.of(flat[option]).items()}
        else:
            found[option] = flat[option]
    return found


def vmapped_options(learner: Any) -> tuple[str, ...]:
    """Names of the options that are leaves of a learner's state, one value per row. Nothing is computed."""
    state = jax.eval_shape(learner.init, jax.random.key(0))
    return tuple(getattr(getattr(state, "hyper", None), "_fields", ()))


def with_leaves(state: Any, values: Mapping[str, Any]) -> Any:
    """A learner's state [S, ...] in which ``values`` (see ``Rows.leaves``) replace its own numbers."""
    if not values:
        return state

    def renewed(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: _like(values[name], leaf) for name, leaf in leaves.items() if name in values}

    def renew(part: Any) -> Any:
        if isinstance(part, constants.TunableState):
            return part._replace(constants={**part.constants, **renewed(part.constants)})
        return part

    state = state._replace(hyper=state.hyper._replace(**renewed(state.hyper._asdict())))
    return jax.tree.map(renew, state, is_leaf=lambda part: isinstance(part, constants.TunableState))


def _like(value: Any, leaf: jax.Array) -> jax.Array:
    """Broadcast a value [S, ...] to a leaf [S, …, ...]: a method repeats its constants per parameter group."""
    value = jax.numpy.asarray(value, leaf.dtype)
    middle = (1,) * (leaf.ndim - value.ndim)
    return jax.numpy.broadcast_to(value.reshape(value.shape[:1] + middle + value.shape[1:]), leaf.shape)


# ----------------------------------------------------------------------------------- splitting a program


def rows_of(tree: Any, part: slice) -> Any:
    """Some rows of a pytree whose leaves lead with [S]."""
    return jax.tree.map(lambda leaf: leaf[part], tree)


def values_of(values: Mapping[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
    """One trial's share of a program's measurements: [S, ...] is sliced, scalars (the speed) are common to all."""
    return {name: value[part] if np.ndim(value) else value for name, value in values.items()}


def lines_of(
    lines: Sequence[Mapping[str, Any]], rows: Rows, trial: str, lost: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One trial's share of a program's record.

    Args:
        lines: as :func:`mtjax.training.record.read` returns them.
        rows: the program's rows.
        trial: the trial's name.
        lost: the message of every trial that diverged: the record of such a trial ends with it, and the other
            records do not contain it.
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
    """Load the rows of the program in a folder.

    Raises:
        ValueError: the folder holds no program, or one that cannot be read.
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
    """The contents of ``program.json``."""
    trials = {name: dataclasses.asdict(config) for name, config in rows.trials.items()}
    return {"trials": trials, "vmapped": list(rows.varying)}
