"""Search with Optuna: suggests the next trials, given the results of earlier ones.

Optuna's state is not saved: every call adds all finished trials of the plan to a new study, so that a sweep resumes
from its own files alone.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mtjax.sweeps import plan
from mtjax.sweeps.ledger import DIVERGED, DONE, State
from mtjax.sweeps.plan import Plan
from mtjax.sweeps.space import Axis, Changes
from mtjax.training.config import SUMMARY

Tried = tuple[Changes, float | None]  # a trial and its value, or None if that is unknown
STARTUP = 8  # trials drawn at random before the sampler uses their results


def require() -> Any:
    """Import Optuna. Returns the module.

    Raises:
        ImportError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("--search=optuna needs Optuna; install it with: pip install 'mtjax[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def suggest(axes: Sequence[Axis], tried: Sequence[Tried], number: int, *, seed: int = 0) -> list[Changes]:
    """Suggest trials by the tree-structured Parzen estimator (Bergstra et al. 2011), which maximises the value.

    Args:
        axes: the swept options.
        tried: earlier trials and their values; None where the value is unknown.
        number: how many trials to suggest for one batch; fewer are returned if nothing new is left to suggest.
        seed: equal arguments give equal suggestions.

    Returns:
        Trials that differ from each other and from those in ``tried``.
    """
    optuna = require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed + len(tried), n_startup_trials=STARTUP, multivariate=True, constant_liar=True
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    spaces = {axis.name: _distribution(optuna, axis) for axis in axes}
    for changes, value in tried:
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        params = {axis.name: _param(axis, changes[axis.name]) for axis in axes}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value, state=state))
    known = [changes for changes, _ in tried]
    found: list[Changes] = []
    for _ in range(20 * number):
        params = study.ask(spaces).params
        changes = {axis.name: _value(axis, params[axis.name]) for axis in axes}
        if changes not in known and changes not in found:
            found.append(changes)
        if len(found) == number:
            break
    return found


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.interval is None:  # by index, as values may be of any type
        return optuna.distributions.CategoricalDistribution(range(len(axis.values)))
    low, high = axis.interval
    if axis.whole:
        return optuna.distributions.IntDistribution(int(low), int(high), log=axis.log)
    return optuna.distributions.FloatDistribution(low, high, log=axis.log)


def _param(axis: Axis, value: Any) -> Any:
    return axis.values.index(value) if axis.interval is None else value


def _value(axis: Axis, param: Any) -> Any:
    if axis.interval is None:
        return axis.values[param]
    if axis.whole:
        return int(param)
    low, high = axis.interval
    return min(max(float(f"{param:.6g}"), low), high)


def tried(folder: str | os.PathLike, made: Plan, state: State) -> list[Tried]:
    """Trials of a sweep with their values: the worst known value if a trial diverged, None if it failed."""
    values: dict[str, float | None] = {}
    for name in made.trials:
        values[name] = value_of(folder, name) if state.trials[name].state == DONE else None
    known = [value for value in values.values() if value is not None]
    for name, progress in state.trials.items():
        if progress.state == DIVERGED and known:
            values[name] = min(known)
    return [(made.trials[name].changes, value) for name, value in values.items()]


def value_of(folder: str | os.PathLike, trial: str) -> float | None:
    """Value of a finished trial: mean success on the training tasks, or mean return where success is not measured."""
    try:
        summary = json.loads((plan.trial_dir(folder, trial) / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    measures: Mapping[str, Any] = summary["results"]["train"]["deterministic"]
    return measures.get("success_any", measures["return"])["mean"]["value"]
