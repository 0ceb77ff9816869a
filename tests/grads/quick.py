"""`jit` for tests of many small programs: LLVM's optimiser is half of their compile time, and changes no result."""

import functools

import jax

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
