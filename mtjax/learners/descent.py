"""One gradient per task in, one step of a network's parameters out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from mtjax import grads
from mtjax.grads import registry
from mtjax.networks.base import Parameters

Array = jax.Array


class _LastShared:
    """Placeholder for the predicate that selects the last shared layer, until ``of_network`` supplies it."""

    def __call__(self, path: str) -> bool:
        raise TypeError("a method that uses the last shared layer must go through of_network first")


POLICY = "a policy's losses are near or below 0"


def gradient_method(spec: str, num_tasks: int, option: str = "grads", *, losses: str | None = POLICY) -> grads.Method:
    """The method of mtjax.grads that an option names. GradNorm uses the last shared layer, as in its paper.

    The method's constants are leaves of its state, named "<option>.<constant>", so that they vmap along with the seeds.

    Args:
        spec: the method, e.g. "cagrad(c=0.4)".
        num_tasks: T.
        option: the option's name, for messages.
        losses: why the losses may be near or below 0; None if they cannot be, and the learner tells the method those
            after each step (see :meth:`Descent.observe`).

    Raises:
        ValueError: there is no such method, learners cannot use it, or it does not support this many tasks.
    """
    method = grads.tunable(spec, f"{option}.")
    if getattr(method, "on_representation", False):
        raise ValueError(f"{option}: {spec} needs gradients of a representation, which no learner provides")
    if getattr(method, "observe", None) is not None and losses:
        raise ValueError(
            f"{option}: {spec} compares logarithms of the losses before and after a step, but {losses}; it is for the "
            "critics of SAC: --critic_grads"
        )
    registry.try_out(spec, num_tasks)
    for call in _calls(registry.parse(spec)):
        if call.name == "gradnorm":
            _check_gradnorm(call, option, losses)
            method = method._replace(leaves=_LastShared())
    return method


def _calls(call: registry.Call) -> list[registry.Call]:
    """All methods in a specification: combinators and the methods that they wrap."""
    inner = [value for value in call.arguments.values() if isinstance(value, registry.Call)]
    return [call, *(found for one in inner for found in _calls(one))]


def _check_gradnorm(call: registry.Call, option: str, losses: str | None) -> None:
    """Reject GradNorm for losses that may be near or below 0, for which its ratio L/L(0) is meaningless."""
    if losses and call.arguments["surrogate"] is None and call.arguments["initial_losses"] is None:
        given = {"alpha": call.arguments["alpha"], "surrogate": "softplus"}
        written = ", ".join(f"{name}={value!r}" for name, value in given.items()).replace("'", '"')
        raise ValueError(
            f"{option}: gradnorm divides each loss by its first value, but {losses}; "
            f"make them positive: 'gradnorm({written})'"
        )


def of_network(method: grads.Method, last_shared: tuple[str, ...]) -> grads.Method:
    """Prepare a method for the gradients of one network.

    Args:
        method: of mtjax.grads. One from ``gradient_method`` that uses the last shared layer is told here which it is.
        last_shared: path prefixes of the network's last shared layers.
    """
    if not isinstance(getattr(method, "leaves", None), _LastShared):
        return method
    return method._replace(leaves=lambda path: path.startswith(last_shared))


class DescentState(NamedTuple):
    """State of the descent of one network.

    Attributes:
        shared: optimiser state of the shared parameters.
        private: optimiser state of the private parameters; leaves lead with [T].
        grads: state of the gradient transform; () if nothing is shared.
    """

    shared: Any
    private: Any
    grads: Any


class Descent:
    """The pure functions that update one network's parameters. Holds no state.

    The tasks' gradients of shared parameters are combined by a method of :mod:`mtjax.grads`; private
    parameters cannot conflict, and an optimiser of its own updates those of each task.

    Args:
        method: of mtjax.grads.
        num_tasks: T.
        optimizer: an optax transform without its learning rate.
    """

    def __init__(self, method: Any, num_tasks: int, optimizer: optax.GradientTransformation):
        self.method, self.num_tasks, self.optimizer = method, num_tasks, optimizer

    def _transform(self, key: Array | int = 0) -> optax.GradientTransformationExtraArgs:
        # A single task has no conflicts to measure.
        return grads.aggregate(self.method, num_tasks=self.num_tasks, seed=key, track_gram=self.num_tasks > 1)

    def init(self, parameters: Parameters, key: Array) -> DescentState:
        """The state before the first step; ``key`` is for methods that use random numbers."""
        shares = bool(jax.tree.leaves(parameters.shared))
        return DescentState(
            shared=self.optimizer.init(parameters.shared),
            private=jax.vmap(self.optimizer.init, axis_size=self.num_tasks)(parameters.private),
            grads=self._transform(key).init(parameters.shared) if shares else (),
        )

    def step(
        self,
        parameters: Parameters,
        state: DescentState,
        task_grads: Parameters,
        losses: Array,
        rate: Array,
        mask: Array | None = None,
    ) -> tuple[Parameters, DescentState, dict[str, Array]]:
        """Take one step.

        Args:
            parameters: parameters of the network.
            state: state of the descent.
            task_grads: every leaf [T, ...]: each task's gradient of the shared parameters, and of its own.
            losses: [T], for methods that use them.
            rate: [] learning rate.
            mask: [T] true for the tasks that take part; None means all.

        Returns:
            (parameters, state, measures of gradient conflict: "cosine" [T, T], "conflict" [], "norm" [T], "weight" [T];
            empty if nothing is shared or T = 1).
        """
        direction, transform, known = parameters.shared, (), {}
        if state.grads != ():
            direction, transform, known = combine(
                self._transform(), task_grads.shared, state.grads, parameters.shared, losses, mask
            )
        step, shared = self.optimizer.update(direction, state.shared, parameters.shared)
        private_step, private = jax.vmap(self.optimizer.update, axis_size=self.num_tasks)(
            task_grads.private, state.private, parameters.private
        )
        moved = jax.tree.map(lambda p, s: p - rate * s, parameters, Parameters(step, private_step))
        return moved, DescentState(shared, private, transform), known

    def observe(self, state: DescentState, losses_after: Callable[[], Array]) -> DescentState:
        """Tell the method the losses after a step, if it needs them (FAMO).

        Args:
            state: state after that step.
            losses_after: computes them [T] from the new parameters, on the same batch; called only if needed.
        """
        if state.grads == () or getattr(self.method, "observe", None) is None:
            return state
        return state._replace(grads=grads.observe(self.method, state.grads, losses_after()))


def combine(
    transform: optax.GradientTransformationExtraArgs,
    task_grads: Any,
    state: Any,
    parameters: Any,
    losses: Array,
    mask: Array | None = None,
) -> tuple[Any, Any, dict[str, Array]]:
    """Combine one gradient per task [T, ...] into one direction, and measure the conflict between gradients.

    Returns:
        (direction, the transform's state, "cosine" [T, T], "conflict" [], "norm" [T] and "weight" [T] by name; no
        measures for a single task, whose Gram matrix is not computed).
    """
    direction, state = transform.update(task_grads, state, parameters, losses=losses, mask=mask)
    if losses.shape[0] == 1:
        return direction, state, {}
    conflict = grads.conflict(state.gram)
    known = {"cosine": conflict["cosine"], "conflict": conflict["conflicting"], "norm": conflict["norms"]}
    return direction, state, {**known, "weight": state.weights}


def optimizer(*, max_grad_norm: float, epsilon: float, weight_decay: float) -> optax.GradientTransformation:
    """Clipping (0: none), Adam and decoupled weight decay (0: none), without a learning rate."""
    clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm else optax.identity()
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(clip, optax.scale_by_adam(eps=epsilon), decay)


def clipped_adam(*, max_grad_norm: float, epsilon: float) -> optax.GradientTransformation:
    """Adam on ``{name: gradients}`` of several networks, each clipped to a global norm of its own (0: no clipping).

    With one norm for all, a critic of large values would make clipping shrink the policy's gradient to the order of
    Adam's epsilon. All leaves are updated as one vector: for a small network, one kernel per leaf costs more than the
    arithmetic, 5 to 8% of a PPO update with two layers of 64.
    """
    adam = optax.scale_by_adam(eps=epsilon)

    def clipped(updates: Mapping[str, Any], vector: Array) -> Array:
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(part)) for _, part in sorted(updates.items())]
        ends = list(itertools.accumulate(sizes, initial=0))
        norms = [jnp.linalg.norm(vector[start:end]) for start, end in itertools.pairwise(ends)]
        position, factor = jnp.arange(vector.size), jnp.ones((), vector.dtype)
        for start, norm in zip(ends, norms, strict=False):
            factor = jnp.where(position < start, factor, max_grad_norm / jnp.maximum(norm, max_grad_norm))
        return vector * factor

    def init(params: Mapping[str, Any]) -> optax.OptState:
        return adam.init(ravel_pytree(params)[0])

    def update(updates: Mapping[str, Any], state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        del params
        vector, as_before = ravel_pytree(updates)
        step, state = adam.update(clipped(updates, vector) if max_grad_norm else vector, state)
        return as_before(step), state

    return optax.GradientTransformation(init, update)


def over_steps(metrics: Mapping[str, Array]) -> dict[str, Array]:
    """The means of metrics [K, ...] over K gradient steps, and "finite" [T]: whether each task's loss was finite.

    Shared parameters carry a NaN to every task at once: only the first step that has one shows which task it came from.
    """
    finite = jnp.isfinite(metrics["loss"])  # [K, T]
    means = {name: metric.mean(axis=0) for name, metric in metrics.items()}
    return {**means, "finite": finite[jnp.argmin(finite.all(axis=1))]}


def polyak(targets: Any, parameters: Any, share: Array) -> Any:
    """Move targets by the fraction ``share`` [] towards the parameters: trees of the same structure, any shapes."""
    return jax.tree.map(lambda old, new: old + share * (jnp.asarray(new) - old), targets, parameters)
