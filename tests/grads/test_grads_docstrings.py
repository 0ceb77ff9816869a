"""The API documentation of the methods is complete (its examples are run by tests/test_docstrings.py)."""

import inspect

import pytest

import mtjax.grads as grads


@pytest.mark.parametrize("name", sorted(set(grads.names()) - {"every_k", "normalize"}))
def test_every_method_says_what_it_is(name):
    """Its paper or definition, its properties, its cost, when to use it, and an example."""
    text = inspect.getdoc(getattr(grads, name))
    for part in ("Properties:", "Cost:", "Use when:", "Example:"):
        assert part in text, part
