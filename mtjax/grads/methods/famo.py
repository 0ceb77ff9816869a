"""FAMO: equal relative progress, at the cost of one more evaluation of the losses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtjax.grads.base import (
    Array,
    Number,
    State,
    Weighting,
    check_number,
    check_optimizer,
    default_float,
    keep_absent,
    need_losses,
    positive,
    presence,
)


class FamoState(NamedTuple):
    """Logits ξ [T], the losses before the step [T], which tasks had a finite one [T], and the optimiser's state."""

    logits: Array
    losses: Array
    present: Array
    optimizer: State


def famo(optimizer: optax.GradientTransformation | None = None, gamma: Number = 0.001) -> Weighting:
    """FAMO (Liu et al., NeurIPS 2023, arXiv 2306.03792, Algorithm 1).

    z = softmax(ξ) and w_i = c z_i/L_i with c = (Σ z_i/L_i)⁻¹: the gradient of Σ z_i log L_i, scaled.
    After the step, the losses L' on the same batch give δ = (∂z/∂ξ)ᵀ (log L − log L'), and
    ξ ← ξ − β(δ + γξ). Therefore call `opt_state = grads.observe(method, opt_state, losses_after)`
    after the parameters have been updated; without this call, the logits do not change.

    Properties: permutation equivariant; the direction is invariant to the scale of each loss; may
    conflict. Cost: O(T), no Gram, one more forward pass. Losses must be positive; others count as
    1e-8 (subtract a lower bound first). A task whose loss before or after the step is Inf or NaN counts as absent
    when the logits are moved.

    Use when: T is so large that the Gram is too expensive.

    Args:
      optimizer: for ξ; by default SGD with learning rate 0.025, as printed (the authors' code uses Adam).
      gamma: decay of ξ; 0.001 in the paper (the authors' code: 0.01 as Adam's weight decay).

    Raises:
      ValueError: an `optimizer` that is not an optax transform, or `gamma` below 0; from the update, no losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.famo()
      >>> weights, state = method.update(jnp.eye(2), method.init(2), losses=jnp.array([1.0, 1.0]))
      >>> state = method.observe(jnp.array([0.1, 0.9]), state)  # task 1 fell behind
      >>> bool(state.logits[1] > state.logits[0])
      True
    """
    optimizer = optimizer or optax.sgd(0.025)
    check_optimizer(optimizer)
    check_number("gamma", gamma, low=0)

    def init(num_tasks: int) -> FamoState:
        logits, present = jnp.zeros((2, num_tasks), default_float())  # two arrays: one used twice cannot be donated
        return FamoState(logits, logits + 1, present, optimizer.init(logits))

    def update(gram, state, *, losses=None, mask=None):
        losses = positive(need_losses("famo", losses)).astype(state.logits.dtype)
        here = presence(losses.shape[0], mask)
        # In logarithms: w_i ∝ z_i/L_i, normalised to sum to 1; also if all losses are infinite.
        logs = jax.nn.log_softmax(state.logits) - jnp.log(jnp.minimum(losses, jnp.finfo(losses.dtype).max))
        weights = jax.nn.softmax(jnp.where(here > 0, logs, -jnp.inf))
        known = jnp.where(jnp.isfinite(losses), here, 0)
        return weights, state._replace(losses=jnp.where(known > 0, losses, state.losses), present=known)

    def observe(losses_after: Array, state: FamoState) -> FamoState:
        after = positive(losses_after).astype(state.logits.dtype)
        known = (state.present > 0) & jnp.isfinite(after)
        progress = jnp.where(known, jnp.log(state.losses) - jnp.log(after), 0)
        z = jnp.where(known, jax.nn.softmax(jnp.where(known, state.logits, -jnp.inf)), 0)
        slope = z * (progress - jnp.dot(z, progress)) + gamma * state.logits
        step, inner = optimizer.update(slope, state.optimizer, state.logits)
        new = state._replace(logits=optax.apply_updates(state.logits, step), optimizer=inner)
        return keep_absent(new, state, known)

    return Weighting(init, update, observe=observe, needs_gram=False)
