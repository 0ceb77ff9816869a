"""The local launcher's division of a machine."""

import pytest

from mtjax.sweeps import local
from mtjax.sweeps.local import Slot


def test_one_program_has_the_whole_machine():
    assert local.share(0, [0, 1], []) == [Slot()]
    assert local.share(1, list(range(64)), ["0"]) == [Slot()]


def test_programs_on_the_cpu_have_equal_shares():
    slots = local.share(0, list(range(16)), [])
    assert [slot.cores for slot in slots] == [tuple(range(i, i + 4)) for i in (0, 4, 8, 12)]
    assert [slot.cores for slot in local.share(3, [0, 1], [])] == [(0,), (0,), (1,)]  # never an empty share


def test_every_program_has_a_device_of_its_own_while_there_are_any():
    assert [slot.device for slot in local.share(0, list(range(8)), ["0", "1"])] == ["0", "1"]
    assert [(slot.device, slot.sharers) for slot in local.share(3, list(range(8)), ["0", "1"])] == [
        ("0", 2),
        ("1", 1),
        ("0", 2),
    ]


@pytest.mark.parametrize(
    "platform, environ, devices",
    [
        ("cpu", {"CUDA_VISIBLE_DEVICES": "0,1"}, []),
        ("auto", {"CUDA_VISIBLE_DEVICES": "0,1"}, ["0", "1"]),
        ("gpu", {"CUDA_VISIBLE_DEVICES": "3"}, ["3"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": "3", "JAX_PLATFORMS": "cpu"}, []),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_devices(platform, environ, devices):
    assert local.usable_devices(platform, environ) == devices
