"""How a test shows that it catches a named mistake: it makes the mistake, and its own check must fail on it."""

import numpy as np
import pytest


def gram_of(J) -> np.ndarray:
    return (np.asarray(J) @ np.asarray(J).T).astype(np.float32)


def fails(check, faulty) -> None:
    with pytest.raises(AssertionError):
        check(faulty)
