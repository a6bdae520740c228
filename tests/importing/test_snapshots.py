"""Pickles of GANformer: read without running their code."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers.golden_file import GoldenFile, find_golden
from helpers.official_snapshot import EasyDict, Network, TensorFlowNetwork, pickled, reconstruct

from gantx.errors import CheckpointError, MissingError
from gantx.importing.reading import PickledNetwork, read_snapshot

STATE = {"b4.conv.weight": torch.randn(2, 3), "b4.noise_const": torch.randn(4, 4), "w_avg": torch.zeros(3)}


def test_every_number_of_an_official_snapshot_is_read():
    stored = read_snapshot(find_golden("gansformer/snapshot_duplex_16.pkl"))
    assert list(stored) == ["dataset_args", "G", "D", "Gs"]
    assert stored["dataset_args"]["resolution"] == 16
    with GoldenFile("gansformer/snapshot_duplex_16_expected") as golden:
        for name in ("G", "D", "Gs"):
            expected = golden.prefix(f"{name}/")
            assert stored[name].tensors.keys() == expected.keys()
            assert all(torch.equal(stored[name].tensors[key], tensor) for key, tensor in expected.items())
            assert stored[name].arguments == golden.config["init_kwargs"][name.removesuffix("s")]
        golden.prefix("in/"), golden.prefix("out/")  # for the networks


def test_a_snapshot_as_the_official_code_writes_it(monkeypatch, tmp_path):
    path = tmp_path / "s.pkl"
    path.write_bytes(pickled(monkeypatch, {"Gs": Network(STATE, {"k": 3}), "note": "n"}))
    with pytest.raises(AssertionError, match="by running its code"):
        pickle.loads(path.read_bytes())
    stored = read_snapshot(path)
    assert stored["note"] == "n"
    assert isinstance(stored["Gs"], PickledNetwork)
    assert stored["Gs"].arguments == {"k": 3}
    assert stored["Gs"].tensors.keys() == STATE.keys()
    assert all(torch.equal(stored["Gs"].tensors[key], tensor) for key, tensor in STATE.items())


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


def test_what_else_networks_carry_is_passed_over(monkeypatch, tmp_path):
    path = tmp_path / "s.pkl"
    network = Network(STATE, EasyDict(k=3, inner=EasyDict(norm="layer")))
    network.attributes["_modules"] |= {"dropout": torch.nn.Dropout(0.1), "none": None}
    network.attributes |= {"gain": np.float64(0.5), "hooks": OrderedDict()}
    network.attributes["_buffers"] |= {"none": None, "temporary": torch.zeros(1)}
    network.attributes["_non_persistent_buffers_set"] = {"temporary"}
    path.write_bytes(pickled(monkeypatch, {"Gs": network}))
    read = read_snapshot(path)["Gs"]
    assert read.tensors.keys() == STATE.keys()
    assert read.arguments == {"k": 3, "inner": {"norm": "layer"}}


@pytest.mark.parametrize("where", ["content", "tensor", "attribute"])
def test_a_pickle_that_would_create_a_file_is_refused_without_running_it(monkeypatch, tmp_path, where):
    path, victim = tmp_path / "evil.pkl", tmp_path / "created"
    evil = Call(open, str(victim), "w")
    content = {
        "content": {"Gs": evil},
        "tensor": {"Gs": Network({**STATE, "evil": torch.zeros(1)}, {})},
        "attribute": {"Gs": Network(STATE, {"k": evil})},
    }[where]
    if where == "tensor":
        content["Gs"].attributes["_parameters"]["evil"] = evil
    path.write_bytes(pickled(monkeypatch, content))
    with pytest.raises(CheckpointError, match=r"names _?io\.open.*could run code, so it is not opened"):
        read_snapshot(path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(evil)).close()
    assert victim.exists()  # it was a real threat


@pytest.mark.parametrize(
    "function", [eval, exec, getattr, __import__, torch.load, torch.hub.load, torch._utils._rebuild_tensor]
)
def test_functions_that_a_snapshot_has_no_need_of_are_refused(tmp_path, function):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"Gs": Call(function, "1")}, protocol=4))
    with pytest.raises(CheckpointError, match="names "):
        read_snapshot(path)


def test_bytes_of_a_tensor_are_not_trusted_either(tmp_path):
    path, victim = tmp_path / "evil.pkl", tmp_path / "created"
    inner = tmp_path / "inner.pt"
    torch.save(Call(open, str(victim), "w"), inner)
    path.write_bytes(pickle.dumps({"Gs": Call(torch.storage._load_from_bytes, inner.read_bytes())}))
    with pytest.raises(CheckpointError, match="not a readable snapshot"):
        read_snapshot(path)
    assert not victim.exists()


def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path):
    path = tmp_path / "s.pkl"
    rebuild, (storage, *_) = torch.zeros(4).__reduce_ex__(2)
    rebuilt = Call(rebuild, storage, 0, (5,), (1,), False, {})
    path.write_bytes(pickle.dumps({"x": rebuilt}))
    with pytest.raises(CheckpointError, match="out of bounds"):
        read_snapshot(path)


def test_a_snapshot_of_tensorflow_is_refused_with_the_way_out(monkeypatch, tmp_path):
    path = tmp_path / "s.pkl"
    path.write_bytes(pickled(monkeypatch, (TensorFlowNetwork(),) * 3))
    with pytest.raises(CheckpointError, match=r"TensorFlow.*convert it to PyTorch"):
        read_snapshot(path)


def test_files_that_are_no_snapshots(monkeypatch, tmp_path):
    for name, content, complaint in (
        ("text", b"<html>", "not a readable snapshot"),
        ("empty", b"", "not a readable snapshot"),
        ("list", pickle.dumps([1]), "contains a list where a snapshot is a dictionary"),
        ("half", pickle.dumps({"Gs": [1.5] * 100})[:-20], "not a readable snapshot"),
        ("stateless", pickled(monkeypatch, {"Gs": Call(reconstruct, {})}), "not a readable snapshot"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=complaint):
            read_snapshot(tmp_path / name)
    with pytest.raises(MissingError, match="there is no checkpoint at"):
        read_snapshot(tmp_path / "absent")
    with pytest.raises(MissingError, match="is a folder"):
        read_snapshot(tmp_path)
