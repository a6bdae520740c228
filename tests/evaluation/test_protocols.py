"""Protocols by name."""

import typing

import pytest

from gantx.config.schema import EvaluationConfig
from gantx.errors import UsageError
from gantx.evaluation.protocols import PROTOCOLS, named


def test_presets_can_name_exactly_the_protocols_there_are():
    known = typing.get_args(EvaluationConfig.model_fields["protocol"].annotation)
    assert set(known) == set(PROTOCOLS)


def test_a_wrong_name_is_answered_with_the_closest():
    with pytest.raises(UsageError, match="did you mean 'clean-50k'"):
        named("clean-5k")


def test_what_the_papers_did():
    transgan, vitgan, ganformer = (
        named(name) for name in ("transgan-test", "vitgan-release", "ganformer-50k")
    )
    assert (transgan.resize, transgan.quantise) == ("legacy-tensorflow", "truncate")
    assert (vitgan.resize, vitgan.quantise, vitgan.num, vitgan.split) == (
        "legacy-pytorch",
        "none",
        10_000,
        "test",
    )
    assert (ganformer.reference_num, ganformer.mirror) == (50_000, True)
    assert named("stylegan-50k-full").ddof == 0
    assert named("clean-50k").resize == "clean"
