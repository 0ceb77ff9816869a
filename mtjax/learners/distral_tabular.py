"""Exact Distral (arXiv 1707.04175) on transition tables: the reference solution for the version with networks.

Every task i has a policy π_i that is regularised towards a distilled policy π₀, which in turn is the policy that
best explains all π_i. With c_KL the cost of diverging from π₀ and c_Ent the cost of low entropy (paper, section 2),

    α = c_KL / (c_KL + c_Ent),   β = 1 / (c_KL + c_Ent),
    J = Σ_i E[ Σ_t γᵗ ( R_i + (α/β) log π₀(a|s) − (1/β) log π_i(a|s) ) ]          (paper, equation 1)

Two half-steps, each exact given the other, never lower J: `solve_task` (soft value iteration with π₀ as the
prior, equations 2 to 4) and `distill` (maximum likelihood under the tasks' discounted occupancies, section 2.2).

>>> from mtjax import suites
>>> from mtjax.learners import distral_tabular as distral
>>> tables = distral.tables(suites.make("gridworld-two-rooms"))
>>> solution = distral.solve(tables, kl_cost=0.1, entropy_cost=0.05, discount=0.95, iterations=5)
>>> bool((solution.objective[1:] >= solution.objective[:-1] - 1e-3).all())
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.gridworld import ACTIONS, TransitionTable, transition_table
from mtjax.suites.base import Suite

Array = jax.Array
MAX_SWEEPS = 10_000  # limit of a fixed-point iteration; a discount of 0.99 needs about 1,600 for seven digits


class TaskSolution(NamedTuple):
    """The solution of one task, given a prior; leaves lead with [T] for several tasks.

    Attributes:
        value: V [S], regularised; 0 in terminal states.
        action_value: Q [S, A].
        log_policy: log π [S, A].
    """

    value: Array
    action_value: Array
    log_policy: Array


class Solution(NamedTuple):
    """What :func:`solve` returns.

    Attributes:
        tasks: the last TaskSolution, leaves [T, ...].
        log_prior: log π₀ [S, A], the prior of that solution.
        objective: J [2 * iterations], after every half-step: tasks, distillation, tasks, …
    """

    tasks: TaskSolution
    log_prior: Array
    objective: Array


def coefficients(kl_cost: Array | float, entropy_cost: Array | float) -> tuple[Array, Array]:
    """(α, β) for the paper's c_KL and c_Ent, which must not both be 0."""
    total = jnp.asarray(kl_cost, jnp.float32) + entropy_cost
    return kl_cost / total, 1.0 / total


def tables(suite: Suite, split: str = "train", *, memory: bool = False) -> TransitionTable:
    """The transition tables of a grid world suite's tasks, leaves [T, ...].

    Args:
        suite: a ``gridworld-*`` suite.
        split: which split's tasks.
        memory: include the last action in the state, as for the paper's distilled policy (see `remember`).
    """
    of_tasks = jax.vmap(transition_table)(suite.splits[split].tasks)
    return jax.vmap(remember)(of_tasks) if memory else of_tasks


def remember(table: TransitionTable) -> TransitionTable:
    """The same task with the last action in its state: (A + 1) · S states, numbered cell + S · action.

    Action A means "none yet". A policy that depends on the last action can keep its direction.
    """
    states, actions = table.next_state.shape
    led_here = jnp.arange(actions, dtype=jnp.int32) * states  # [A] offset of the state after each action
    return TransitionTable(
        next_state=jnp.tile(table.next_state + led_here, (actions + 1, 1)),
        reward=jnp.tile(table.reward, (actions + 1, 1)),
        terminal=jnp.tile(table.terminal, actions + 1),
        start=jnp.concatenate([jnp.zeros(states * actions, table.start.dtype), table.start]),
    )


def solve_task(
    table: TransitionTable,
    log_prior: Array,
    *,
    alpha: Array | float,
    beta: Array | float,
    discount: Array | float,
    tolerance: float = 1e-6,
) -> TaskSolution:
    """Soft value iteration with a prior (equations 2 to 4).

        V(s) = (1/β) log Σ_a π₀(a|s)^α exp(β Q(s, a)),   Q(s, a) = R(s, a) + γ V(s'),   π = π₀^α exp(β (Q − V))

    Args:
        table: transition table of one task.
        log_prior: log π₀ [S, A].
        alpha, beta: see `coefficients`. α = 0 ignores the prior: soft Q-learning.
        discount: γ in [0, 1).
        tolerance: sweeps stop once no value changes by more than this.
    """

    def backup(value: Array) -> tuple[Array, Array]:
        action_value = table.reward + discount * value[table.next_state]
        soft = jax.nn.logsumexp(alpha * log_prior + beta * action_value, axis=-1) / beta
        return jnp.where(table.terminal, 0.0, soft), action_value

    value = _fixed_point(lambda v: backup(v)[0], jnp.zeros(table.terminal.shape, jnp.float32), tolerance)
    action_value = backup(value)[1]
    return TaskSolution(value, action_value, jax.nn.log_softmax(alpha * log_prior + beta * action_value, axis=-1))


def occupancy(table: TransitionTable, log_policy: Array, *, discount: Array | float, tolerance: float = 1e-7) -> Array:
    """Discounted visits Σ_t γᵗ P(s_t = s) of every state [S]; 0 for terminal states, which end the episode."""
    flow = jnp.where(table.terminal[:, None], 0.0, jnp.exp(log_policy))  # nothing leaves a terminal state

    def sweep(visits: Array) -> Array:
        arriving = jnp.zeros_like(visits).at[table.next_state].add(visits[:, None] * flow)
        return table.start + discount * arriving

    return jnp.where(table.terminal, 0.0, _fixed_point(sweep, table.start, tolerance))


def distill(visits: Array, log_policies: Array, log_prior: Array) -> Array:
    """The π₀ that maximises Σ_i E_{π_i} Σ_t γᵗ log π₀(a|s): the visit-weighted mean of the tasks' policies.

    Args:
        visits: [T, S] from `occupancy`.
        log_policies: [T, S, A].
        log_prior: [S, A], kept in states that no task visits.

    Returns:
        log π₀ [S, A].
    """
    weighted = jax.nn.logsumexp(log_policies, b=visits[..., None], axis=0)
    total = visits.sum(axis=0)[:, None]
    seen = total > 0
    return jnp.where(seen, weighted - jnp.log(jnp.where(seen, total, 1.0)), log_prior)


def objective(
    table: TransitionTable,
    log_policy: Array,
    log_prior: Array,
    *,
    alpha: Array | float,
    beta: Array | float,
    discount: Array | float,
    tolerance: float = 1e-6,
) -> Array:
    """One task's contribution to J [] (equation 1), by exact evaluation of its policy."""
    policy = jnp.exp(log_policy)
    regularised = table.reward + (alpha / beta) * log_prior - log_policy / beta

    def backup(value: Array) -> Array:
        new = (policy * (regularised + discount * value[table.next_state])).sum(axis=-1)
        return jnp.where(table.terminal, 0.0, new)

    value = _fixed_point(backup, jnp.zeros(table.terminal.shape, jnp.float32), tolerance)
    return table.start @ value


def solve(
    tables: TransitionTable,
    *,
    kl_cost: Array | float,
    entropy_cost: Array | float,
    discount: Array | float,
    iterations: int = 20,
) -> Solution:
    """Alternate the two half-steps from a uniform π₀.

    Args:
        tables: the tasks, leaves [T, ...], over one state space.
        kl_cost: c_KL, cost of diverging from π₀. 0: independent soft learners.
        entropy_cost: c_Ent, cost of low entropy. 0 with one task: unregularised control, in the limit.
        discount: γ in [0, 1).
        iterations: repetitions of both half-steps.
    """
    alpha, beta = coefficients(kl_cost, entropy_cost)
    coefficient = {"alpha": alpha, "beta": beta, "discount": discount}
    over_tasks = jax.vmap(lambda table, prior: solve_task(table, prior, **coefficient), in_axes=(0, None))
    visits = jax.vmap(lambda table, policy: occupancy(table, policy, discount=discount))

    def total(log_policies: Array, log_prior: Array) -> Array:
        of_task = jax.vmap(lambda table, policy: objective(table, policy, log_prior, **coefficient))
        return of_task(tables, log_policies).sum()

    def iterate(log_prior: Array, _: None):
        solution = over_tasks(tables, log_prior)
        new = distill(visits(tables, solution.log_policy), solution.log_policy, log_prior)
        both = jnp.stack([total(solution.log_policy, log_prior), total(solution.log_policy, new)])
        return new, both

    states, actions = tables.reward.shape[1:]
    uniform = jnp.full((states, actions), -jnp.log(float(actions)), jnp.float32)
    log_prior, history = jax.lax.scan(iterate, uniform, None, length=iterations)
    return Solution(over_tasks(tables, log_prior), log_prior, history.reshape(-1))


def keeps_direction(log_prior: Array, cells: Array, num_cells: int) -> Array:
    """The probability that π₀ repeats the last action in some cells, e.g. those of a corridor.

    Args:
        log_prior: [(A + 1) · S, A] of tasks with memory.
        cells: [N] int32.
        num_cells: S.

    Returns:
        [N, A]: for every cell and last action, the probability of taking that action again.
    """
    actions = jnp.arange(len(ACTIONS))
    return jnp.exp(log_prior[cells[:, None] + num_cells * actions, actions])


def _fixed_point(function: Callable[[Array], Array], start: Array, tolerance: float) -> Array:
    """Apply a contraction until no entry changes by more than ``tolerance``."""

    def changing(carry: tuple[Array, Array, Array]) -> Array:
        _, change, sweep = carry
        return (change > tolerance) & (sweep < MAX_SWEEPS)

    def apply(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, sweep = carry
        new = function(x)
        return new, jnp.abs(new - x).max(), sweep + 1

    first = (start, jnp.asarray(jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(changing, apply, first)[0]
