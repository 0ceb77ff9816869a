"""Solvers of T×T problems: jit- and vmap-safe, one Cholesky factor of a T×T matrix per step.

All stop at a tolerance near the dtype's precision, or else after a fixed number of steps. Under
`vmap` a batch runs until its slowest member stops.
"""
