"""One gradient per task in, one step of a network's parameters out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
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
    """Stands for the last layer that tasks share until it is known which that is (see ``of_network``)."""

    def __call__(self, path: str) -> bool:
        raise TypeError("a method that looks at the last shared layer goes through of_network first")


POLICY = "a policy's losses are near or below 0"


def gradient_method(spec: str, num_tasks: int, option: str = "grads", *, losses: str | None = POLICY) -> grads.Method:
    """The method of mtjax.grads that an option names. GradNorm looks at the last shared layer, as its paper says.

    The method's constants are leaves of its state, named "<option>.<constant>": they vmap beside the seeds.

    Raises:
        ValueError: there is no such method, it cannot be used by a learner, or not for so many tasks.
    """
    method = grads.tunable(spec, f"{option}.")
    if getattr(method, "on_representation", False):
        raise ValueError(f"{option}: {spec} needs gradients of a representation, which no learner provides")
    if getattr(method, "observe", None) is not None:
        raise ValueError(
            f"{option}: {spec} needs the losses after the step on the same batch, which no learner looks at"
        )
    registry.try_out(spec, num_tasks)
    for call in _calls(registry.parse(spec)):
        if call.name == "gradnorm":
            _check_gradnorm(call, option, losses)
            method = method._replace(leaves=_LastShared())
    return method


def _calls(call: registry.Call) -> list[registry.Call]:
    """The methods of a specification: combinators and what they wrap."""
    inner = [value for value in call.arguments.values() if isinstance(value, registry.Call)]
    return [call, *(found for one in inner for found in _calls(one))]


def _check_gradnorm(call: registry.Call, option: str, losses: str | None) -> None:
    """Refuse what GradNorm would make of losses that are near or below 0: L/L(0) says nothing of them."""
    if losses and call.arguments["surrogate"] is None and call.arguments["initial_losses"] is None:
        given = {"alpha": call.arguments["alpha"], "surrogate": "softplus"}
        written = ", ".join(f"{name}={value!r}" for name, value in given.items()).replace("'", '"')
        raise ValueError(
            f"{option}: gradnorm divides each loss by its first one, and {losses}; "
            f"make them positive: 'gradnorm({written})'"
        )


def of_network(method: grads.Method, last_shared: tuple[str, ...]) -> grads.Method:
    """A method as one network's gradients are shown to it.

    Args:
        method: of mtjax.grads. One of ``gradient_method`` that looks at the last shared layer learns here which it is.
        last_shared: how the paths of the network's last shared layers begin.
    """
    if not isinstance(getattr(method, "leaves", None), _LastShared):
        return method
    return method._replace(leaves=lambda path: path.startswith(last_shared))


class DescentState(NamedTuple):
    """State of the descent of one network.

    Attributes:
        shared: optimiser state of the shared parameters.
        private: that of the private ones; leaves lead with [T].
        grads: state of the gradient transform; () if nothing is shared.
    """

    shared: Any
    private: Any
    grads: Any


class Descent:
    """The pure functions that move one network's parameters. Holds no state.

    The tasks' gradients of shared parameters are combined by a method of :mod:`mtjax.grads`; private
    parameters have no conflict, and each task's are moved by their own optimiser.

    Args:
        method: of mtjax.grads.
        num_tasks: T.
        optimizer: an optax transform without its learning rate.
    """

    def __init__(self, method: Any, num_tasks: int, optimizer: optax.GradientTransformation):
        self.method, self.num_tasks, self.optimizer = method, num_tasks, optimizer

    def _transform(self, key: Array | int = 0) -> optax.GradientTransformationExtraArgs:
        # One task has nothing to conflict with.
        return grads.aggregate(self.method, num_tasks=self.num_tasks, seed=key, track_gram=self.num_tasks > 1)

    def init(self, parameters: Parameters, key: Array) -> DescentState:
        """The state before the first step; ``key`` is for methods that draw."""
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
            parameters: of the network.
            state: of the descent.
            task_grads: every leaf [T, ...]: each task's gradient of the shared parameters, and of its own.
            losses: [T], for methods that look at them.
            rate: [] learning rate.
            mask: [T] true for the tasks that take part; all of them, if None.

        Returns:
            (parameters, state, what is known of the conflict: "cosine" [T, T], "conflict" [], "norm" [T], "weight"
            [T]; nothing if nothing is shared).
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


def combine(
    transform: optax.GradientTransformationExtraArgs,
    task_grads: Any,
    state: Any,
    parameters: Any,
    losses: Array,
    mask: Array | None = None,
) -> tuple[Any, Any, dict[str, Array]]:
    """One gradient per task [T, ...] in; one direction, the transform's state, and what is known of the conflict.

    Returns:
        (direction, state, "cosine" [T, T], "conflict" [], "norm" [T] and "weight" [T] by name; nothing for one task,
        whose Gram matrix is not computed).
    """
    direction, state = transform.update(task_grads, state, parameters, losses=losses, mask=mask)
    if losses.shape[0] == 1:
        return direction, state, {}
    conflict = grads.conflict(state.gram)
    known = {"cosine": conflict["cosine"], "conflict": conflict["conflicting"], "norm": conflict["norms"]}
    return direction, state, {**known, "weight": state.weights}


def optimizer(*, max_grad_norm: float, epsilon: float, weight_decay: float) -> optax.GradientTransformation:
    """Clipping (0 is none), Adam, decoupled weight decay (0 is none), without a learning rate."""
    clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm else optax.identity()
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(clip, optax.scale_by_adam(eps=epsilon), decay)


def clipped_adam(*, max_grad_norm: float, epsilon: float) -> optax.GradientTransformation:
    """Adam on ``{name: gradients}`` of several networks, each clipped to a global norm of its own (0 is none).

    Under one norm for all, a critic of large values would clip the policy's gradient away, down to Adam's epsilon.
    All leaves are moved as one vector: a small network's many leaves cost more kernels than arithmetic, 5 to 8% of a
    PPO update with two layers of 64.
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
    """Metrics [K, ...] of K gradient steps as their means, and "finite" [T]: was the loss of each task finite?

    Shared parameters carry a NaN to every task at once: only the first step that had one tells whose it was.
    """
    finite = jnp.isfinite(metrics["loss"])  # [K, T]
    means = {name: metric.mean(axis=0) for name, metric in metrics.items()}
    return {**means, "finite": finite[jnp.argmin(finite.all(axis=1))]}


def polyak(targets: Any, parameters: Any, share: Array) -> Any:
    """Targets that have taken over ``share`` [] of the parameters: trees of one form, any shapes."""
    return jax.tree.map(lambda old, new: old + share * (jnp.asarray(new) - old), targets, parameters)
