"""The examples of the API documentation: what a reader copies from a docstring runs, and prints what it says."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import mtjax.grads as grads

MODULES = ["mtjax.grads"] + [m.name for m in pkgutil.walk_packages(grads.__path__, "mtjax.grads.") if not m.ispkg]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(set(grads.names()) - {"every_k", "normalize"}))
def test_every_method_says_what_it_is(name):
    """Its paper or definition, its properties, its cost, when to use it, and an example."""
    text = inspect.getdoc(getattr(grads, name))
    for part in ("Properties:", "Cost:", "Use when:", "Example:"):
        assert part in text, part
