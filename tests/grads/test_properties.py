"""Every method's properties, measured: the table of the docs cannot drift from what the code does."""

import properties
import pytest

from mtjax import grads


@pytest.mark.parametrize("name", properties.SPECS)
def test_claims(name):
    measured = properties.measure(name)
    claimed = dict(zip(properties.PROPERTIES, (c == "1" for c in properties.CLAIMS[name]), strict=True))
    assert measured == claimed


def test_every_method_is_measured():
    """A method added to the registry must come with its properties."""
    combinators = {"every_k", "normalize"}
    assert {name.split("(")[0] for name in properties.CLAIMS} == set(grads.names()) - combinators


def test_page_is_current():
    assert properties.PAGE.read_text(encoding="utf-8") == properties.table()
