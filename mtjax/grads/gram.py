"""The two operations whose cost depends on P, the number of parameters: the Gram matrix and the weighted sum.

Apart from them, a `Weighting` works on T×T matrices only. Both take lists or trees of leaves [T, ...] and compute in
float32 at least: bfloat16 gradients are accepted, and their products accumulate in float32.

A direction never overflows: entries beyond the range of its dtype saturate at the largest finite number. To keep
partial sums from overflowing too (inf − inf is NaN), terms are divided by a power of two before they are summed, which
is exact except for the smallest numbers.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mtjax.grads import explicit
from mtjax.grads.base import Array, default_float

# Tuning constants for XLA's CPU backend.
_SMALL = 524288  # a leaf of up to this many numbers is multiplied in one product
_NUMBERS = 81920  # per piece, at most: 320 kB, which fits in a core's cache
_PIECES, _PRODUCTS = 32, 48  # per loop step, about: XLA wakes another thread if more than eight operations are waiting
_ROWS, _VECTOR = 16, 8  # row multiples of a piece and of the remainder's: kernels process whole vectors of 8 or 16
_ROW_BLOCKS = 5  # maximum number of full-height blocks of the T rows: every pair of blocks is a product to compile
_COLUMNS = 16384  # per slice in `by_columns`: one row of a slice is 64 kB
_LONG, _FEW = 32768, 16  # a leaf of at least _LONG numbers per task and at most _FEW tasks is summed row by row


def gram_matrix(task_grads: Any, other: Any = None) -> Array:
    """Gram matrix G_ij = ⟨g_i, g_j⟩ of a tree of per-task gradients.

    Args:
      task_grads: tree with leaves [T, ...].
      other: a second tree of the same structure, from independent samples. The result is then the cross Gram
        ⟨g_i, g'_j⟩, which keeps the double-sampling methods (`modo`, `sdmgrad`) unbiased.

    Returns:
      [T, T], in float32 (float64 when x64 is enabled).

    Raises:
      ValueError: the trees have different numbers of leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> grads.gram_matrix({"w": jnp.array([[1.0, 2.0], [0.0, 3.0]])}).tolist()
      [[5.0, 6.0], [6.0, 9.0]]
    """
    mesh = explicit.mesh_of((task_grads, other))
    if mesh is not None:
        return explicit.automatic(gram_matrix, explicit.placed(0, mesh), task_grads, other)
    left = jax.tree.leaves(task_grads)
    right = left if other is None else jax.tree.leaves(other)
    parts = [_leaf_gram(a, b) for a, b in zip(left, right, strict=True)]
    return sum_parts(parts).astype(default_float())


def sum_parts(parts: list[Array]) -> Array:
    """Sum of a non-empty list of arrays of the same shape."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def weighted_sum(weights: Array, task_grads: Any) -> Any:
    """Direction Σ_i w_i g_i: a tree with leaves [...] from weights [T] and leaves [T, ...]; dtypes are kept.

    Entries that overflow saturate at the dtype's largest number; an Inf or a NaN in the gradients is kept.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> grads.weighted_sum(jnp.array([0.5, 0.5]), {"w": jnp.array([[1.0, 2.0], [0.0, 3.0]])})["w"].tolist()
      [0.5, 2.5]
    """

    def leaf(g: Array) -> Array:
        small, power = divided(weights.astype(accumulator(g)))
        if g.shape[0] > _FEW or math.prod(g.shape[1:]) < _LONG:
            total = jnp.einsum("t,t...->...", small, g, precision="highest", preferred_element_type=small.dtype)
            return saturated(multiplied(total, power), g.dtype)
        # The barriers prevent fusion: g is computed first, and the sum once, not again in every consumer.
        return lax.optimization_barrier(_sum_of_rows(small, power, lax.optimization_barrier(g)))

    mesh = explicit.mesh_of((weights, task_grads))
    if mesh is not None:
        return explicit.automatic(weighted_sum, explicit.placed(task_grads, mesh, drop=1), weights, task_grads)
    return jax.tree.map(leaf, task_grads)


def _sum_of_rows(small: Array, power: Array, g: Array) -> Array:
    """The sum, unrolled: saturation fuses into its pass; after a dot it would be another pass, up to half as long."""
    total = small[0] * g[0].astype(small.dtype)
    for row in range(1, g.shape[0]):
        total = small[row] * g[row].astype(small.dtype) + total
    return saturated(multiplied(total, power), g.dtype)


def divided(weights: Array) -> tuple[Array, Array]:
    """Weights [T] divided by a power of two [] ≥ 1 such that |Σ_i w_i x_i| ≤ ½ max_i |x_i|, and that power."""
    kind, tasks = jnp.finfo(weights.dtype), max(weights.shape[0] - 1, 0).bit_length()
    largest = 2.0 ** (kind.maxexp - 4 - tasks)
    weights = jnp.where(jnp.isfinite(weights), jnp.clip(weights, -largest, largest), weights)
    near = lax.reduce_precision(jnp.max(jnp.abs(weights)), kind.nexp, 0)  # a power of two, at least ⅔ of the maximum
    power = lax.stop_gradient(jnp.maximum(near * 2.0 ** (tasks + 2), 1))  # it cancels: no derivative passes through it
    return weights / power, power


def power_above(count: int) -> float:
    """A power of two such that `count` numbers, divided by it, sum to less than half of the largest."""
    return 2.0 ** (count.bit_length() + 1)


def multiplied(x: Array, power: float | Array) -> Array:
    """x times a power of two ≥ 1; overflow saturates at the dtype's largest number, with x's sign."""
    limit = float(jnp.finfo(x.dtype).max) / power
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit), x) * power


def saturated(x: Array, dtype: Any) -> Array:
    """x cast to `dtype`; a finite x that overflows becomes its largest number, with x's sign."""
    limit = float(jnp.finfo(dtype).max)
    if limit >= float(jnp.finfo(x.dtype).max):
        return x.astype(dtype)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit), x).astype(dtype)


def as_finite(x: Array, *given: Array) -> Array:
    """x, made finite where all of `given` are: it is at most a mean of them, so that only rounding can make it Inf."""
    limit = float(jnp.finfo(x.dtype).max)
    finite = reduce(jnp.logical_and, map(jnp.isfinite, given))
    return jnp.where(finite, jnp.clip(x, -limit, limit), x)


def constant_like(row: Array, value: float, dtype: Any) -> Array:
    """An array filled with `value`, with the shape and varying mesh axes of `row`, so that loops trace in shard_map."""
    return jnp.where(row == row, value, value).astype(dtype)


def zeros_of(shape: jax.ShapeDtypeStruct) -> Array:
    """Zeros for a `jax.eval_shape` result, with its varying mesh axes, so that both branches of a `cond` agree."""
    zeros = jnp.zeros(shape.shape, shape.dtype)
    kind = getattr(shape, "manual_axis_type", None)  # called vma before jax 0.12
    axes = kind.varying if kind is not None else getattr(shape, "vma", None)
    return lax.pcast(zeros, tuple(axes), to="varying") if axes else zeros


def accumulator(*arrays: Array) -> Any:
    """The dtype to accumulate products in: float32, or float64 if an operand is float64."""
    return jnp.result_type(jnp.float32, *(x.dtype for x in arrays))


def over_rows(step: Callable[[Any, Any], Any], start: Any, rows: range, *, straight: bool) -> Any:
    """Folds step(row, carry) over the rows of a leaf [T, ...], from `start`; unrolled if `straight`.

    XLA's CPU backend fuses the unrolled steps into one pass over the rows per output array: an eighth to a half of the
    time of a loop, whose carry goes through memory at every row. But compile time grows with the number of rows.
    """
    if straight:
        return reduce(lambda carry, row: step(row, carry), rows, start)
    return lax.fori_loop(rows.start, rows.stop, step, start)


def by_columns(function: Callable[..., Array], *arrays: Array) -> Array:
    """Applies `function` to arrays [..., P]; each entry of its result [P] must depend on its own column only.

    On the CPU it processes slices of columns, so that the carry of a loop over the tasks stays in a core's cache: this
    halves the time of the trimmed mean (10 × 1M), and gains nothing for GradDrop, which carries less.
    """
    return lax.platform_dependent(*arrays, cpu=partial(_by_slices, function), default=function)


def _by_slices(function: Callable[..., Array], *arrays: Array) -> Array:
    size = arrays[0].shape[-1]
    whole = size // _COLUMNS * _COLUMNS
    if not whole:
        return function(*arrays)

    def fill(n: Array, row: Array) -> Array:
        pieces = [lax.dynamic_slice_in_dim(x, n * _COLUMNS, _COLUMNS, axis=x.ndim - 1) for x in arrays]
        return lax.dynamic_update_slice_in_dim(row, function(*pieces), n * _COLUMNS, axis=0)

    start = constant_like(arrays[0].reshape(-1, size)[0], 0, jax.eval_shape(function, *arrays).dtype)
    row = lax.fori_loop(0, whole // _COLUMNS, fill, start)
    return row.at[whole:].set(function(*[x[..., whole:] for x in arrays])) if whole < size else row


def _leaf_gram(a: Array, b: Array) -> Array:
    num_tasks = a.shape[0]
    size = math.prod(a.shape[1:])
    same = a is b
    a, b = a.reshape(num_tasks, size), b.reshape(num_tasks, size)
    if num_tasks * size <= _SMALL:
        return _product(a, b)
    return lax.platform_dependent(a, b, cpu=partial(_blocked, same=same), default=_product)


def _product(a: Array, b: Array) -> Array:
    if a.shape[0] == b.shape[0] == 1:  # XLA's CPU may sum such a dot sequentially, with a rounding error each time
        dtype = accumulator(a, b)
        return jnp.sum(a.astype(dtype) * b.astype(dtype), axis=1, keepdims=True)
    return jnp.einsum("tp,sp->ts", a, b, precision="highest", preferred_element_type=accumulator(a, b))


def _heights(num_tasks: int) -> list[int]:
    """Heights of the blocks into which T rows are split, in non-increasing order."""
    height = _ROWS * -(-num_tasks // (_ROWS * _ROW_BLOCKS))
    whole, rest = divmod(num_tasks, height)
    tail = rest // _VECTOR * _VECTOR if rest > _VECTOR else 0
    return [h for h in (*[height] * whole, tail, rest - tail) if h]


def _blocked(a: Array, b: Array, *, same: bool) -> Array:
    """The Gram of long rows [T, P], from products of pieces of 16 rows (more above 80 tasks) by at most 5120 columns.

    XLA's CPU backend multiplies long thin matrices slowly, on one thread, and copies a slice of columns before
    multiplying it. Here each piece is copied once and stays in a core's cache for all its products, which run on all
    threads. If a and b are the same, the blocks below the diagonal are transposes of those above; above it, the right
    operand, which a kernel has to pack, is the smaller one.
    """
    num_tasks, size = a.shape
    heights = _heights(num_tasks)
    starts = [sum(heights[:n]) for n in range(len(heights))]
    pairs = [(n, m) for n in range(len(heights)) for m in range(len(heights)) if m >= n or not same]
    together = min(math.ceil(_PIECES / len(heights)), math.ceil(_PRODUCTS / len(pairs)))
    steps = max(2, -(-size // (together * (_NUMBERS // heights[0]))))  # XLA unrolls a one-step loop: twice the time
    width = (size - 1) // (together * steps)  # leaves at least one column, from which the sums start
    width -= width % _ROWS
    done = steps * together * width

    def pieces(x: Array, column: int | Array, width: int) -> list[Array]:
        return [
            lax.dynamic_slice(x, (row, column), (height, width), allow_negative_indices=False)
            for row, height in zip(starts, heights, strict=True)
        ]

    def products(column: int | Array, width: int) -> list[Array]:
        right = pieces(b, column, width)
        left = right if same else pieces(a, column, width)
        return [_product(left[n], right[m]) for n, m in pairs]

    # The barrier hides the column numbers from XLA, so that all slices are identical and are compiled only once.
    columns = lax.optimization_barrier([jnp.int32(n * width) for n in range(together)])

    def add(step: Array, totals: list[Array]) -> list[Array]:
        several = [products(step * (together * width) + column, width) for column in columns]
        return [total + sum_parts(parts) for total, *parts in zip(totals, *several, strict=True)]

    totals = lax.fori_loop(0, steps, add, products(done, size - done))
    blocks = dict(zip(pairs, totals, strict=True))
    everything = range(len(heights))
    return jnp.block([[blocks[n, m] if (n, m) in blocks else blocks[m, n].T for m in everything] for n in everything])
