"""Every arrangement in plain NumPy, one observation at a time, written from the equations and not from the code."""

import numpy as np


def forward(config, shared, private, code, context, x):
    """The output [out] of one task at one observation x [in]; parameters are trees of NumPy arrays."""
    parts = {**shared, **private}
    z = task_vector(config, parts, code, context)
    if config.arrangement == "paco":
        w = affine(parts["mix"], z) if len(z) else parts["mix"]
        return plain(config, _sum_of(w, parts["sets"]), x)
    if config.arrangement == "hypernetwork":
        u = affine(parts["mix"], z)
        moved = _sum_of(u / np.linalg.norm(u), parts["moves"])
        return plain(config, _add(parts["base"], moved), x)
    if "encoder" in parts:
        x = mlp(config, parts["encoder"], x)
    features = BODIES[config.parts.body](config, parts, code, z, x)
    return mlp(config, parts["head"], features, linear_end=True)


def task_vector(config, parts, code, context):
    if config.told == "none":
        return np.zeros(0)
    if config.told == "one_hot":
        return code
    if config.told == "context":
        return mlp(config, parts["context"], context, linear_end=True, norm=False)
    e = parts["embedding"]
    return e / np.linalg.norm(e) if config.unit_norm_embedding else e


# -------------------------------------------------------------------------------------------- layers


def affine(p, x):
    return np.asarray(x) @ np.asarray(p["kernel"]) + np.asarray(p["bias"])


def act(config, x):
    return {"tanh": np.tanh, "relu": lambda v: np.maximum(v, 0.0)}[config.activation](x)


def normalise(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def layer_norm(p, x):
    return normalise(x) * np.asarray(p["scale"]) + np.asarray(p["bias"]) if p else normalise(x)


def mlp(config, tree, x, linear_end=False, norm=None):
    """Dense_0, Dense_1 … with a normalisation (if configured) and a non-linearity after each but a linear last."""
    p = tree.get("params", {})
    number = sum(name.startswith("Dense_") for name in p)
    for i in range(number):
        x = affine(p[f"Dense_{i}"], x)
        if linear_end and i == number - 1:
            return x
        if config.layer_norm and norm is not False:
            x = layer_norm(p.get(f"LayerNorm_{i}"), x)
        x = act(config, x)
    return x


def trunk(config, tree, x):
    if config.trunk == "mlp":
        return mlp(config, tree, x)
    p = tree["params"]

    def layer(i, x):
        return layer_norm(p.get(f"LayerNorm_{i}"), affine(p[f"Dense_{i}"], x))

    x = act(config, layer(0, x))
    for i in range(1, sum(name.startswith("Dense_") for name in p), 2):
        x = x + layer(i + 1, act(config, layer(i, x)))
    return x


def plain(config, p, x):
    return mlp(config, p["head"], trunk(config, p["trunk"], x), linear_end=True)


def softmax(v):
    e = np.exp(v - np.max(v))
    return e / e.sum()


def member(tree, j):
    """Module j of a stack."""
    return {k: member(v, j) if isinstance(v, dict) else np.asarray(v)[j] for k, v in tree.items()}


def _sum_of(weights, sets):
    total = None
    for k, w in enumerate(weights):
        scaled = _scale(w, member(sets, k))
        total = scaled if total is None else _add(total, scaled)
    return total


def _scale(w, tree):
    return {k: _scale(w, v) if isinstance(v, dict) else w * np.asarray(v) for k, v in tree.items()}


def _add(a, b):
    return {k: _add(a[k], b[k]) if isinstance(a[k], dict) else np.asarray(a[k]) + np.asarray(b[k]) for k in a}


# -------------------------------------------------------------------------------------------- bodies


def _trunk(config, parts, code, z, x):
    return trunk(config, parts["trunk"], np.concatenate([x, z]))


def _film(config, parts, code, z, x):
    for i in range(len(config.hidden_sizes)):
        p = parts[f"film_{i}"]
        film = affine(p["film"], z)
        gamma, beta = 1.0 + film[: len(film) // 2], film[len(film) // 2 :]
        h = affine(p["layer"], x)
        x = act(config, gamma * (normalise(h) if config.layer_norm else h) + beta)
    return x


def _experts(config, parts, code, z, x):
    x = np.concatenate([x, z])
    outs = [trunk(config, member(parts["experts"], j), x) for j in range(config.num_experts)]
    if config.selection == "gate":
        w = softmax(affine(parts["gate"], x))
    elif config.selection == "attention":
        query = affine(parts["query"], z)
        w = softmax([out @ query / np.sqrt(len(out)) for out in outs])
    elif config.selection == "cluster":
        w = np.zeros(config.num_experts)
        w[config.clusters[int(np.argmax(code))]] = 1.0
    else:
        w = np.full(config.num_experts, 1.0 / config.num_experts)
    return sum(weight * out for weight, out in zip(w, outs, strict=True))


def _care(config, parts, code, z, x):
    encodings = [mlp(config, member(parts["encoders"], j), x, linear_end=True) for j in range(config.num_experts)]
    alpha = softmax([encoding @ z for encoding in encodings])
    mixed = sum(a * encoding for a, encoding in zip(alpha, encodings, strict=True))
    return trunk(config, parts["trunk"], np.concatenate([mixed, z]))


def _moore(config, parts, code, z, x):
    outs = [mlp(config, member(parts["experts"], j), x, linear_end=True) for j in range(config.num_experts)]
    basis = []
    for out in outs:
        v = out - sum(((out @ b) * b for b in basis), np.zeros_like(out))
        basis.append(v / np.linalg.norm(v))
    w = affine(parts["mix"], z) if len(z) else parts["weights"]
    return np.tanh(sum(weight * b for weight, b in zip(w, basis, strict=True)))


def _soft_modular(config, parts, code, z, x):
    paper = config.modular_variant == "paper"
    layers, n, _ = config.module_sizes
    f = mlp(config, parts["base"], x, linear_end=True)
    phi = f * affine(parts["task"], z)
    r = parts["router"]

    def rows(logits):
        p = np.stack([softmax(row) for row in logits.reshape(-1, n)])
        return np.eye(n)[p.argmax(axis=1)] if config.routing == "hard" else p

    routings = []
    if paper:
        p = affine(r["down_0"], act(config, phi))
        routings.append(rows(p))
        for layer in range(1, layers - 1):
            p = affine(r[f"down_{layer}"], act(config, affine(r[f"up_{layer}"], p) * phi))
            routings.append(rows(p))
    else:
        gate = affine(r["gate_1"], act(config, affine(r["gate_0"], act(config, phi))))
        routings.append(rows(affine(r["down_0"], act(config, gate))))
        for layer in range(1, layers):
            seen = np.concatenate([p.reshape(-1) for p in routings])
            hidden = act(config, affine(r[f"up_{layer}"], seen) * gate)
            routings.append(rows(affine(r[f"down_{layer}"], hidden)))

    g = [f if paper else act(config, f)] * n
    for layer in range(layers - 1):
        out = [affine(member(parts[f"modules_{layer}"], j), g[j]) for j in range(n)]
        p = routings[layer]
        if paper:
            g = [sum(p[i, j] * act(config, out[j]) for j in range(n)) for i in range(n)]
        else:
            g = [act(config, sum(p[i, j] * out[j] for j in range(n))) for i in range(n)]
    if paper:
        return np.concatenate(g)
    out = [affine(member(parts[f"modules_{layers - 1}"], j), g[j]) for j in range(n)]
    return act(config, sum(routings[-1][0, j] * out[j] for j in range(n)))


BODIES = {
    "trunk": _trunk,
    "private": _trunk,
    "film": _film,
    "experts": _experts,
    "care": _care,
    "moore": _moore,
    "soft_modular": _soft_modular,
}
