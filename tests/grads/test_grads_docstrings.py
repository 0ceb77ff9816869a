"""The API documentation of the methods is complete (its examples are run by tests/test_docstrings.py)."""

import inspect
import re

import pytest

import mtjax.grads as grads

REFUSE_NOTHING = ("mean", "sum", "config", "imtl_g")  # they take no argument and no losses
# An arXiv id, a venue and its year, or the word itself for what needs no paper.
CITED = re.compile(r"arXiv \d{4}\.\d{4,5}|(ICLR|ICML|NeurIPS|CVPR|TMLR|JMLR)\D{0,12}20\d\d|by definition")


def summary(name: str) -> str:
    """The first paragraph of a method's docstring, on one line."""
    return " ".join(inspect.getdoc(getattr(grads, name)).split("\n\n")[0].split())


@pytest.mark.parametrize("name", sorted(set(grads.names()) - {"every_k", "normalize"}))
def test_every_method_says_what_it_is(name):
    """Its paper or definition, its properties, its cost, when to use it, and an example."""
    assert CITED.search(summary(name)), summary(name)
    text = inspect.getdoc(getattr(grads, name))
    for part in ("Properties:", "Cost:", "Use when:", "Example:", *(["Raises:"] if name not in REFUSE_NOTHING else [])):
        assert part in text, part


@pytest.mark.parametrize(
    "text, cited",
    [("A method (Blanchard et al.)", False), ("MGDA (Désidéri 2012)", False), ("CAGrad (NeurIPS 2021)", True),
     ("X (2020, arXiv 2001.06782)", True), ("NeurIPS paper, section 2012", False)],
)  # fmt: skip
def test_what_counts_as_a_citation(text, cited):
    assert bool(CITED.search(text)) == cited


@pytest.mark.parametrize("name", ["imtl_g", "imtl_l", "krum"])
def test_a_paper_can_be_found(name):
    """By a link or an id, where these are of the kind that a title alone does not lead to."""
    assert re.search(r"https://openreview.net/forum\?id=\w+|arXiv \d{4}\.\d{5}", summary(name))
