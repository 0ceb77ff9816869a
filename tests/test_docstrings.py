"""The examples in docstrings are run."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "mtjax").rglob("*.py")
    if ">>>" in path.read_text()
)


def test_there_are_examples():
    assert {"mtjax.grads", "mtjax.envs.probe", "mtjax.learners.distral_tabular"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried and not failed
