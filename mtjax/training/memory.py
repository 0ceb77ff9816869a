"""How much memory a run takes, as reported by XLA's compiler, and how many environments fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mtjax.learners import replay
from mtjax.learners.replay import free_memory, size_text, without
from mtjax.suites.base import Suite
from mtjax.training.config import RunConfig
from mtjax.training.meshes import Layout
from mtjax.training.trainer import Trainer

SHARE = 0.5  # fraction of the free memory that a chosen number of environments may take
TEMPORARIES = 6.0  # temporaries of updates, relative to state and rollout: 0.1 (SAC) to 5.6 (PPO, hoppers) on a CPU
LOOK = 0.02  # fraction of the free memory: only if a rollout exceeds it is the state counted, too, which takes seconds
MIN_UPDATES = 200  # minimum number of updates that a chosen number of environments leaves: fewer learn little


class Footprint(NamedTuple):
    """Bytes used on one device while a compiled program runs.

    Attributes:
        arguments: inputs.
        results: outputs, except those that reuse the memory of an argument.
        temporaries: intermediate values.
    """

    arguments: int
    results: int
    temporaries: int

    @property
    def total(self) -> int:
        return self.arguments + self.results + self.temporaries


def of_program(compiled: Any) -> Footprint | None:
    """The memory that a compiled program takes, or None if the compiler does not report it."""
    try:
        found = compiled.memory_analysis()
    except NotImplementedError:
        found = None
    if found is None or not hasattr(found, "temp_size_in_bytes"):
        return None
    results = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    return Footprint(found.argument_size_in_bytes, results, found.temp_size_in_bytes)


def describe(program: Footprint | None, free: int | None) -> str | None:
    """One line on the memory that a run's program takes on each device; None if it is not known.

    Args:
        program: memory of the program.
        free: bytes that are free when state and rollout are already allocated; None if unknown.
    """
    if program is None:
        return None
    text = (
        f"memory per device: {size_text(program.total)} (state and rollout {size_text(program.arguments)}, "
        f"results {size_text(program.results)}, temporaries {size_text(program.temporaries)})"
    )
    if free is None:
        return text
    more = program.results + program.temporaries
    warning = "; this will probably not fit: lower num_envs or num_seeds" if more > free else ""
    return f"{text}; {size_text(free)} free{warning}"


# ------------------------------------------------------------------------------------- what can never fit


def require_replay(trainer: Trainer) -> None:
    """Raise ValueError if the replays of all seeds exceed their limit or the free memory."""
    buffer = trainer.learner.replay
    if buffer:
        buffer.require_memory(trainer.config.num_seeds // trainer.placement.layout.seed)


def require(trainer: Trainer) -> None:
    """Refuse a run whose replay, or whose state and rollout alone, exceed the free memory, before allocating any.

    Compiles nothing, and traces the programs only if the rollout is large. Temporaries of updates are not counted,
    nor are host simulators.

    Raises:
        ValueError: one line with the sizes and what to lower.
    """
    require_replay(trainer)
    config, suite, free = trainer.config, trainer.suite, free_memory()
    if free is None or not suite.on_device:
        return
    devices = trainer.placement.layout.size
    need = _rollout(trainer) / devices
    if LOOK * free < need <= free:
        state, rollout = _shapes(trainer)
        need = _size((without(state), rollout)) / devices
    if need > free:
        raise ValueError(
            f"num_envs={config.num_envs}, num_seeds={config.num_seeds}: state and rollout take at least "
            f"{size_text(need)} per device, but only {size_text(free)} is free; lower num_envs or num_seeds"
        )


def _rollout(trainer: Trainer) -> int:
    """Bytes of the large parts of all seeds' rollouts: observations before and after each step, action, reward."""
    config, suite = trainer.config, trainer.suite
    numbers = 2 * suite.observation_size + math.prod(suite.action.shape) + 1
    return 4 * numbers * config.num_seeds * suite.num_tasks * config.num_envs * config.hyper.rollout_length


# --------------------------------------------------------------------------------- how many environments


class Choice(NamedTuple):
    """A number of environments, and why this one."""

    num_envs: int
    reason: str


def choose(
    needs: Callable[[int], float],
    free: float | None,
    *,
    start: int,
    steps_of_env: int,
    total_steps: int,
    multiple: int = 1,
) -> Choice:
    """The largest of ``start``, 2 · ``start``, 4 · ``start`` … that fits into memory and leaves enough updates.

    If ``start`` itself does not fit into memory, it is halved until it does.

    Args:
        needs: number of environments of each task -> bytes on one device.
        free: free bytes on that device, or None if unknown.
        start: environments of each task that the preset or the default asks for.
        steps_of_env: environment steps that one environment of each task adds to an update: tasks · rollout_length.
        total_steps: environment steps of the run.
        multiple: the number must be a multiple of this.

    Returns:
        The number, and its reason in one line.
    """
    budget = math.inf if free is None else SHARE * free

    def updates(number: int) -> int:
        return total_steps // (steps_of_env * number)

    start = max(multiple, start - start % multiple)
    chosen = start
    while needs(chosen) > budget and chosen % (2 * multiple) == 0:
        chosen //= 2
    too_much = f"more than {SHARE:.0%} of the free {size_text(free or 0)}"
    if needs(chosen) > budget:
        return Choice(chosen, f"even this number takes {too_much}")
    while updates(2 * chosen) >= MIN_UPDATES and needs(2 * chosen) <= budget:
        chosen *= 2
    more = 2 * chosen
    if needs(more) > budget:
        return Choice(chosen, f"{more} would take {too_much}")
    reason = f"{more} would leave only {updates(more):,} updates in {total_steps:,} steps; the minimum is {MIN_UPDATES}"
    if free is not None:
        reason += f"; memory is not the limit: {size_text(needs(chosen))} of {size_text(free)}"
    return Choice(chosen, reason)


def choose_envs(config: RunConfig, suite: Suite, layout: Layout) -> Choice:
    """Choose the number of environments that suits this machine. Traces the programs, compiles nothing.

    Args:
        config: the search starts at its ``num_envs``.
        suite: its tasks.
        layout: how the environments are divided.

    Raises:
        ValueError: the configuration does not fit the suite; or its simulators run on the host.
    """
    if not suite.on_device:
        raise ValueError(
            f"num_envs: suite {suite.name!r} runs its simulators on the host, limited by cores, not by memory; "
            "give a number instead of auto"
        )
    low, high = config.num_envs, 2 * config.num_envs
    (kept, at_low), (_, at_high) = (_needs(config, suite, number) for number in (low, high))
    each = (at_high - at_low) / (high - low)
    fixed = at_low - each * low  # networks: replicated along "env", like replays

    def needs(number: int) -> float:
        return kept / layout.seed + (1 + TEMPORARIES) * (fixed / layout.seed + each * number / layout.size)

    return choose(
        needs,
        free_memory(),
        start=config.num_envs,
        steps_of_env=suite.num_tasks * config.hyper.rollout_length,
        total_steps=config.total_steps,
        multiple=layout.env,
    )


def _needs(config: RunConfig, suite: Suite, num_envs: int) -> tuple[int, int]:
    """Bytes of all seeds: of their replays, which are updated in place, and of the rest of state and rollout."""
    trainer = Trainer(dataclasses.replace(config, num_envs=num_envs), suite)
    state = trainer.shapes()
    rest = jax.eval_shape(replay.emptied, state)
    rollout = jax.eval_shape(trainer.collect, trainer.env, state)[1]
    return _size(state) - _size(rest), _size((rest, rollout))


def _shapes(trainer: Trainer) -> tuple[Any, Any]:
    """State and rollout of all seeds, as shapes and dtypes."""
    state = trainer.abstract()
    return state, jax.eval_shape(trainer.collect, trainer.env, state)[1]


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
