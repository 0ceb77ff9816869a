"""Solvers of T×T problems: jit- and vmap-safe, one Cholesky factor of a T×T matrix per step.

All stop early by a tolerance near the dtype's precision, and after a fixed number of steps in any
case. Under `vmap` a batch runs until its slowest member stops.
"""
