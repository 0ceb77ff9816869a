"""Nash-MTL and FairGrad: bargaining and α-fair directions, from one Newton solver."""

import jax.numpy as jnp

from mtjax.grads.base import Array, Number, State, Weighting, check_number, cosines, norms, presence, stateless
from mtjax.grads.solvers.bargaining import power_newton


def nash_mtl(max_norm: Number | None = None) -> Weighting:
    """Nash-MTL (Navon et al., ICML 2022, arXiv 2202.01017, Claim 3.1 and Algorithm 1).

    The Nash bargaining solution is α > 0 with α∘(Gα) = 1, the stationarity condition of the strictly
    convex ½αᵀGα − Σ log α, so that damped Newton in cosine space replaces the paper's convex-concave
    loop. Each task has the same share, α_i g_i·Δ = 1, so ‖Jᵀα‖ = √T: set `max_norm`, or choose the
    learning rate accordingly. Where no solution exists (Pareto-stationary points), a tiny ridge keeps
    α finite, and the norm clipping of the published recipe bounds the step.

    Properties: never conflicts; invariant to the scale of each task's loss; permutation
    equivariant. Cost: about 10 T×T Cholesky factors.

    Use when: losses have different scales and every task matters.

    Args:
      max_norm: upper bound of ‖Jᵀα‖; the authors' code clips to 1. None is the algorithm as printed.
        (For that code's update_weights_every, wrap the method in `every_k`. It also solves for the Gram
        divided by its norm and does not undo this, which amounts to rescaling the learning rate.)

    Raises:
      ValueError: `max_norm` not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.nash_mtl().update(jnp.diag(jnp.array([1.0, 4.0])), ())
      >>> [round(float(w), 3) for w in weights]
      [1.0, 0.5]
    """
    if max_norm is not None:
        check_number("max_norm", max_norm, above=0)

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        here = presence(gram.shape[-1], mask, gram.dtype)
        return _clip(gram, alpha_fair(gram, 1.0, here), max_norm), state

    return Weighting(stateless, update, residual=_residual(1.0, max_norm))


def fairgrad(alpha: Number = 1.0, max_norm: Number | None = None) -> Weighting:
    """FairGrad (Ban and Ji, ICML 2024, arXiv 2402.15638, equation 4 and Algorithm 1).

    Maximises the α-fair utility of the tasks' rates: G w = w^(−1/α), w > 0. α → 0 is the sum, 1 is proportional
    fairness (Nash-MTL), 2 minimises potential delay, α → ∞ is max-min. The Newton solver is that of `nash_mtl`; with
    α below 0.05, it may stop short of the solution if gradients conflict and their norms differ by orders of
    magnitude: `residual` measures how far.

    Properties: never conflicts; permutation equivariant; G → s²G scales w by s^(−2α/(1+α)). Cost:
    about 10 T×T Cholesky factors, up to 100 for α near 0.05.

    Use when: as for `nash_mtl`, with an adjustable trade-off between efficiency and fairness.

    Args:
      alpha: fairness; 1 is the default of the authors' code (the paper tunes it).
      max_norm: upper bound of ‖Jᵀw‖; None is the algorithm as printed.

    Raises:
      ValueError: `alpha` or `max_norm` not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.fairgrad(alpha=1.0).update(jnp.diag(jnp.array([1.0, 4.0])), ())
      >>> [round(float(w), 3) for w in weights]
      [1.0, 0.5]
    """
    check_number("alpha", alpha, above=0)
    if max_norm is not None:
        check_number("max_norm", max_norm, above=0)

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        here = presence(gram.shape[-1], mask, gram.dtype)
        return _clip(gram, alpha_fair(gram, 1.0 / alpha, here), max_norm), state

    return Weighting(stateless, update, residual=_residual(alpha, max_norm))


def alpha_fair(gram: Array, power: Number, here: Array) -> Array:
    """w > 0 with G w = w^(−power) [T]; 0 for absent tasks and for those with a zero gradient.

    With u = D w and d_i relative to their geometric mean s: C u = d^(power−1) u^(−power), and
    w = s^(−2/(1+power)) D⁻¹u.
    """
    norm = norms(gram)
    here = here * (norm > 0)
    log_norm = jnp.where(here > 0, jnp.log(jnp.where(norm > 0, norm, 1)), 0)
    centre = jnp.sum(log_norm) / jnp.maximum(jnp.sum(here), 1)
    relative = jnp.exp(jnp.where(here > 0, log_norm - centre, 0))
    both = here[:, None] * here[None, :]
    cosine = jnp.where(jnp.eye(gram.shape[0]) > 0, 1, cosines(gram) * both)
    log_scale = (power - 1) * jnp.log(relative)
    unit = power_newton(cosine, log_scale, power)
    return here * unit / relative * jnp.exp(-2 * centre / (1 + power))


def _residual(alpha: Number, max_norm: Number | None):
    """The residual max |w_i (Gw)_i^α − 1| over the tasks with non-zero gradients, as a function.

    With `max_norm`, w_i (Gw)_i^α is divided by its mean over the tasks, as the weights may have been clipped. A task
    whose (Gw)_i is within rounding error of its target counts as 0: for α = 0.1, the target may be 1e-30.
    """

    def residual(gram: Array, weights: Array, *, losses=None, mask=None) -> Array:
        norm = norms(gram)
        here = (presence(gram.shape[-1], mask, gram.dtype) > 0) & (norm > 0)
        cosine, scaled = cosines(gram), weights * norm
        image, rounding = norm * (cosine @ scaled), norm * (jnp.abs(cosine) @ jnp.abs(scaled))
        rounding = 32 * jnp.finfo(gram.dtype).eps * rounding  # twice the solver's ridge
        rates = jnp.where(here, weights * jnp.maximum(image, 0) ** alpha, 0)
        clear = here & (image > rounding)
        level = 1.0 if max_norm is None else jnp.sum(rates * clear) / jnp.maximum(jnp.sum(clear), 1)
        level = jnp.where(level == 0, 1, level)
        ought = (level / jnp.where(weights > 0, weights, 1)) ** (1 / alpha)
        near = (weights > 0) & (jnp.abs(image - ought) <= rounding)
        return jnp.max(jnp.where(here & ~near, jnp.abs(rates / level - 1), 0))

    return residual


def _clip(gram: Array, weights: Array, max_norm: Number | None) -> Array:
    if max_norm is None:
        return weights
    scaled = weights * norms(gram)
    length = jnp.sqrt(jnp.maximum(scaled @ (cosines(gram) @ scaled), 0))
    return weights * jnp.minimum(1, max_norm / jnp.maximum(length, jnp.finfo(gram.dtype).tiny))
