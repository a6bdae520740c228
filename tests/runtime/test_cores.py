"""Cores: allowed ones, and busy ones."""

import os

import pytest

from gantx.runtime import cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a call of Linux")
def test_the_allowed_cores_are_those_of_the_system():
    assert cores.allowed() == os.sched_getaffinity(0)


def test_busy_cores_are_measured():
    allowed = cores.allowed()
    assert 0 <= cores.busy(allowed, seconds=0.05) <= len(allowed) + 0.1
    assert cores.busy(set(), seconds=0.05) == 0
