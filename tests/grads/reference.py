"""Independent float64 references, from the papers, in NumPy and SciPy; none is written on the Gram alone.

Each maps a Jacobian [T, P] to a direction [P], and returns None where the paper defines none.
"""

import numpy as np
import scipy.optimize
import scipy.stats


def unit(J):
    norm = np.linalg.norm(J, axis=1)
    return J / np.where(norm > 0, norm, 1)[:, None]


def pcgrad(J, orders):
    """Algorithm 1; `orders[i]` is the order in which task i meets the tasks."""
    total = np.zeros(J.shape[1])
    for i, order in enumerate(orders):
        g = J[i].copy()
        for j in order:
            if j != i and g @ J[j] < 0:
                g = g - (g @ J[j]) / (J[j] @ J[j]) * J[j]
        total += g
    return total


def gradvac(J, orders, target, beta):
    """Algorithm 1, and the least ‖g'_i‖/‖g_i‖ on its way; changes `target` in place."""
    total, least = np.zeros(J.shape[1]), 1.0
    for i, order in enumerate(orders):
        g = J[i].copy()
        for j in order:
            length, other = np.linalg.norm(g), np.linalg.norm(J[j])
            if j == i or length * other == 0:
                continue
            phi = g @ J[j] / (length * other)
            goal = target[i, j]
            if phi < goal:
                pull = length * (goal * np.sqrt(1 - phi**2) - phi * np.sqrt(1 - goal**2))
                g = g + pull / (other * np.sqrt(1 - goal**2)) * J[j]
                least = min(least, np.linalg.norm(g) / np.linalg.norm(J[i]))
            target[i, j] = (1 - beta) * goal + beta * phi
        total += g
    return total, least


def mgda(J):
    """The minimiser of ‖Jᵀw‖² + s²(Σw − 1)² over w ≥ 0 is, up to length, the min-norm point."""
    norm = np.linalg.norm(J, axis=1)
    if (norm == 0).any():
        return np.zeros(J.shape[1])
    scale = 1 / np.sqrt(np.sum(norm**-2.0))
    A = np.vstack([(J / norm[:, None]).T, (scale / norm)[None]])
    w = scipy.optimize.nnls(A, np.r_[np.zeros(J.shape[1]), scale], maxiter=100 * len(J))[0] / norm
    return J.T @ w / w.sum()


def cagrad(J, c):
    """The dual of equation (3), by SLSQP."""
    T = len(J)
    if not J.any():
        return np.zeros(J.shape[1])
    size = np.abs(J).max()
    J = J / size
    g0 = J.mean(0)
    radius = c * np.linalg.norm(g0)
    if min(np.linalg.norm(J, axis=1)) == 0 and T > 1:
        return None  # g_w = 0 is then a solution, and g_w/‖g_w‖ is undefined

    def dual(w):
        g = w @ J
        n = np.linalg.norm(g)
        return g @ g0 + radius * n, J @ g0 + radius * J @ g / max(n, 1e-30)

    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(T)}
    found = scipy.optimize.minimize(
        dual, np.full(T, 1 / T), jac=True, bounds=[(0, 1)] * T, constraints=simplex, method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-15},
    )  # fmt: skip
    g = np.maximum(found.x, 0) @ J
    return size * (g0 + radius * g / np.linalg.norm(g))


def imtl_g(J):
    """Equal projections with Σw = 1: min-norm w of [U Jᵀ w equal] through the pseudo-inverse."""
    norm = np.linalg.norm(J, axis=1)
    present = norm > 0
    if not present.any():
        return np.zeros(J.shape[1])
    U = unit(J)[present]
    v = np.linalg.pinv(U @ U.T, rcond=1e-10, hermitian=True) @ np.ones(len(U)) / norm[present]
    if abs(v.sum()) <= 1e-3 * np.abs(v).sum():
        return None
    return J[present].T @ v / v.sum()


def config(J):
    """Equations (2) and (3), in R^P."""
    if not J.any():
        return np.zeros(J.shape[1])
    direction = np.linalg.pinv(unit(J), rcond=1e-7) @ (np.linalg.norm(J, axis=1) > 0)
    if np.linalg.norm(direction) < 1e-7:
        return None  # opposite gradients: no direction has equal projections but 0
    u = direction / np.linalg.norm(direction)
    return (J @ u).sum() * u


def alpha_fair(J, alpha):
    """G w = w^(−1/α): the maximiser of the α-fair utility, by SciPy's root finder in log w."""
    if not J.any():
        return np.zeros(J.shape[1])
    J = J[np.linalg.norm(J, axis=1) > 0]
    norm = np.linalg.norm(J, axis=1)
    if np.linalg.norm(mgda(unit(J))) < 1e-3:
        return None  # Pareto-stationary, or nearly so: no solution
    C = unit(J) @ unit(J).T
    d = norm / np.exp(np.log(norm).mean())

    def residual(x):
        u = np.exp(x)
        return C @ u - d ** (1 / alpha - 1) * u ** (-1 / alpha)

    def slope(x):
        u = np.exp(x)
        return C * u + np.diag(d ** (1 / alpha - 1) * u ** (-1 / alpha) / alpha)

    best = None
    for scale in (0.0, -1.0, 1.0):
        found = scipy.optimize.root(residual, np.full(len(J), scale), jac=slope, method="lm", tol=1e-14)
        if np.abs(found.fun).max() < 1e-9 and np.abs(found.x).max() < 8:
            best = found.x
            break
    if best is None:
        return None
    w = np.exp(best) / d * np.exp(-2 * np.log(norm).mean() / (1 + 1 / alpha))
    return J.T @ w


def even(J, preference):
    return np.full(len(J), 1 / len(J)) if preference is None else preference


def aligned_mtl(J, mode="min", preference=None):
    """Algorithm 1 by the SVD of J."""
    if not J.any():
        return np.zeros(J.shape[1])
    U, sigma, V = np.linalg.svd(J, full_matrices=False)
    kept = sigma > 1e-6 * sigma.max() if sigma.max() > 0 else sigma > 0
    values = sigma[kept] ** 2
    level = {"min": values.min(), "median": np.sort(values)[(len(values) - 1) // 2], "rmse": values.mean()}
    aligned = np.sqrt(level[mode]) * U[:, kept] @ V[kept]
    return aligned.T @ even(J, preference)


def project(J, g):
    """Projection of g on {d : Jd ≥ 0}: g + Jᵀs with s ≥ 0 the least-squares solution (Moreau)."""
    U = unit(J)
    s = scipy.optimize.nnls(U.T, -g, maxiter=100 * len(J))[0]
    return g + U.T @ s


def upgrad(J, preference=None):
    return np.sum([project(J, p * g) for p, g in zip(even(J, preference), J, strict=True)], axis=0)


def dualproj(J, preference=None):
    return project(J, J.T @ even(J, preference))


def krum_scores(J, byzantine):
    """Each task's sum of its least squared distances ‖g_i − g_j‖², and of the ‖g_i‖² + ‖g_j‖² that they are made of."""
    scores, sizes = [], []
    for i in range(len(J)):
        others = sorted((np.sum((J[i] - J[j]) ** 2), J[i] @ J[i] + J[j] @ J[j]) for j in range(len(J)) if j != i)
        near = others[: max(len(J) - byzantine - 2, 1)]
        scores.append(sum(distance for distance, _ in near))
        sizes.append(sum(size for _, size in near))
    return np.array(scores), np.array(sizes)


def cosine_gate(J, main, weighted):
    total = J[main].copy()
    if not total.any():  # it has no direction that another gradient could share
        return total
    for j in range(len(J)):
        cosine = unit(J)[main] @ unit(J)[j]
        if j != main and cosine >= 0:
            total += (cosine if weighted else 1.0) * J[j]
    return total


def trimmed_mean(J, trim):
    return scipy.stats.trim_mean(J, trim / len(J), axis=0)


def graddrop(J, uniform, leak):
    total = np.abs(J).sum(0)
    P = 0.5 * (1 + J.sum(0) / np.where(total > 0, total, 1))
    M = (uniform < P) * (J > 0) + (uniform > P) * (J < 0)
    return (leak * J + (1 - leak) * M * J).sum(0)


def simplex(v):
    """Projection on the simplex, by bisection on the shift."""
    shift = scipy.optimize.brentq(lambda t: np.maximum(v - t, 0).sum() - 1, v.min() - 1, v.max(), xtol=1e-15)
    return np.maximum(v - shift, 0)
