"""Measures of gradient conflict, computed from an existing Gram matrix. All work under jit and vmap."""

import jax.numpy as jnp

from mtjax.grads.base import Array, Weighting, cosines, norms, presence, safe_divide
from mtjax.grads.methods.mgda import min_norm
from mtjax.grads.registry import get


def conflict(gram: Array, *, mask: Array | None = None) -> dict[str, Array]:
    """How much the tasks' gradients disagree.

    Cosines and the fraction of conflicting pairs follow PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782,
    Definitions 1 to 3); `norm_ratio` and `cancellation` are defined below.

    Args:
      gram: [T, T], such as `find_state(opt_state).gram`.
      mask: [T], true for the tasks present; the others are ignored, even if their rows hold NaN.

    Returns:
      `cosine` [T, T] and `norms` [T], 0 for absent tasks; `conflicting`, the fraction of pairs of present tasks
      whose cosine is negative; `mean_cosine` and `min_cosine` over all pairs of present tasks (0 and 1 if there are
      no pairs); `norm_ratio`, the largest over the smallest non-zero norm; `cancellation`, 1 − ‖Σg_i‖ / Σ‖g_i‖,
      which is 0 when all gradients point the same way and 1 when they sum to zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> float(grads.conflict(jnp.array([[1.0, -1.0], [-1.0, 4.0]]))["conflicting"])
      1.0
    """
    gram, here = _present(gram, mask)
    cosine, norm = cosines(gram), norms(gram)
    pairs = jnp.triu(here[:, None] * here[None, :], 1)
    count = jnp.maximum(jnp.sum(pairs), 1)
    nonzero = norm > 0
    largest = jnp.max(norm)
    smallest = jnp.min(jnp.where(nonzero, norm, largest))
    length = jnp.sqrt(jnp.maximum(jnp.sum(gram), 0))
    return {
        "cosine": cosine,
        "norms": norm,
        "conflicting": jnp.sum(pairs * (cosine < 0)) / count,
        "mean_cosine": jnp.sum(pairs * cosine) / count,
        "min_cosine": jnp.min(jnp.where(pairs > 0, cosine, 1)),
        "norm_ratio": safe_divide(largest, smallest),
        "cancellation": jnp.where(largest > 0, 1 - safe_divide(length, jnp.sum(norm)), 0),
    }


def pareto_distance(gram: Array, *, mask: Array | None = None) -> Array:
    """Distance to Pareto stationarity: the minimum of ‖Jᵀw‖ over the simplex [].

    It is 0 when no direction improves all tasks (Désidéri 2012, "Multiple-gradient descent algorithm (MGDA) for
    multiobjective optimization").

    Args:
      gram: [T, T], such as `find_state(opt_state).gram`.
      mask: [T], true for the tasks present, over which the simplex is taken. Without a mask, an absent task's row
        of zeros counts as a zero gradient, and the distance is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> round(float(grads.pareto_distance(jnp.eye(4))), 3)
      0.5
    """
    gram, here = _present(gram, mask)
    weights = min_norm(gram, here)
    scaled = weights * norms(gram)
    return jnp.sqrt(jnp.maximum(scaled @ (cosines(gram) @ scaled), 0))


def _present(gram: Array, mask: Array | None) -> tuple[Array, Array]:
    """The Gram [T, T] with zeros (never NaN) in the rows and columns of absent tasks, and the mask as floats [T]."""
    here = presence(gram.shape[-1], mask, gram.dtype)
    return jnp.where((here[:, None] > 0) & (here[None, :] > 0), gram, 0), here


def residual(
    method: str | Weighting, gram: Array, weights: Array, *, losses: Array | None = None, mask: Array | None = None
) -> Array:
    """How far a solver's weights are from solving its equations, relative to the gradients' scale.

    0 is exact; rounding leaves a small multiple of the dtype's precision.

    - `mgda`, `mgda_ub`: the duality gap, (wᵀGw − min Gw) / wᵀ diag(G) w.
    - `cagrad`: the duality gap of its inner problem, over ‖d‖ Σ w_i ‖g_i‖.
    - `nash_mtl`, `fairgrad`: max |w_i (Gw)_i^α − 1|; large where no solution exists.
    - `dualproj`: the largest violation |min(v − p, Gv)|; `upgrad`: the largest over its T projections, which
      are solved again, at the method's own cost.

    The other methods do not solve equations iteratively, except `pcd`, whose problem depends on running averages
    that the Gram does not contain.

    Pass the Gram for which the weights were solved. Under `aggregate(..., groups=...)`, the state's `weights` are
    the mean over the groups and its `gram` covers all shared leaves: pass `group_weights[k]` and the `gram_matrix`
    of group k's leaves instead.

    Args:
      method: a method, or its name with arguments, "fairgrad(alpha=2.0)".
      gram: [T, T], such as `find_state(opt_state).gram` if there is one group.
      weights: [T], such as `find_state(opt_state).weights` if there is one group.
      losses: [T], if the method needs them (`mgda("loss")`).
      mask: [T], true for the tasks present.

    Raises:
      ValueError: the method has no residual.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> gram = jnp.array([[2.0, -1.0], [-1.0, 1.0]])
      >>> weights, _ = grads.cagrad(c=0.4).update(gram, ())
      >>> bool(grads.residual("cagrad(c=0.4)", gram, weights) < 1e-4)
      True
    """
    measure = getattr(get(method), "residual", None)
    if measure is None:
        name = method if isinstance(method, str) else "this method"
        raise ValueError(
            f"{name} has no residual: it has no solver, or one whose problem depends on its state; "
            "mgda, mgda_ub, cagrad, nash_mtl, fairgrad, upgrad and dualproj have one"
        )
    return measure(gram, weights, losses=losses, mask=mask)
