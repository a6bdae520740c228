"""torch.export archives: what a network needs is read, and nothing in them is ever run.

torch.export.load itself (2.11, 2.15) runs the code of `hostile_parts`, of the pickles and of the expression;
the rest is refused because it may become source text.
"""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from gantx.errors import DataError
from gantx.evaluation.programs import open_program

CPU = torch.device("cpu")


class Small(nn.Module):
    """Parameters, buffers, a constant, a text as argument, a graph within the graph, symbolic sizes."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.factor = torch.linspace(0, 1, 6)

    def forward(self, x):
        with torch.no_grad():
            x = self.norm(self.convolution(x / 255))
        x = nn.functional.gelu(x, approximate="tanh").reshape(x.shape[0], 6, -1)
        return torch.einsum("bcn,c->bc", x, self.factor)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def archive(network, tmp_path_factory):
    """A good archive as {member: content}."""
    path = tmp_path_factory.mktemp("program") / "good.pt2"
    any_number = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: any_number},))
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as file:
        return {name.removeprefix("good/"): file.read(name) for name in file.namelist()}


class Trap:
    """Code that leaves a file behind when it runs, as Python text and as a pickle."""

    def __init__(self, path):
        self.path = path

    @property
    def code(self):
        return f"__import__('pathlib').Path({str(self.path)!r}).touch()"

    def __reduce__(self):
        return eval, (self.code,)

    @property
    def saved(self):
        buffer = io.BytesIO()
        torch.save(self, buffer)
        return buffer.getvalue()


@pytest.fixture
def trap(tmp_path):
    trap = Trap(tmp_path / "code-was-run")
    yield trap
    assert not trap.path.exists()


def written(members, path):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(
                f"good/{name}", content if isinstance(content, bytes | str) else json.dumps(content)
            )
    return path


def opened(members, tmp_path):
    """What a program of these members gives for two images."""
    program = open_program(written(members, tmp_path / "written.pt2"), CPU)
    with torch.no_grad():
        return program.run(IMAGES)


IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 255
MODEL = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


def test_a_good_program_gives_what_the_network_gives(network, archive, tmp_path):
    program = open_program(written(archive, tmp_path / "good.pt2"), CPU)
    assert program.shape == (None, 3, 16, 16)
    assert program.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(program.run(IMAGES), network(IMAGES))


def test_a_program_goes_to_another_device_whole(archive, tmp_path):
    program = open_program(written(archive, tmp_path / "good.pt2"), torch.device("meta"))
    assert program.run(IMAGES.to("meta")).device.type == "meta"
    assert all(parameter.device.type == "meta" for parameter in program.run.parameters())


def hostile_parts(archive, trap):
    """Archives with a part that gantx has no use for: it is left behind, and the rest works."""
    model = json.loads(archive[MODEL])
    (call, *_) = model["graph_module"]["module_call_graph"]
    tree = {"type": "builtins.dict", "context": None, "children_spec": []}
    tree["context"] = json.dumps({"__enum__": True, "fqn": f"{Path(trap.path).stem}:x", "name": "y"})
    call["signature"]["out_spec"] = json.dumps([1, tree])
    guarded = {**json.loads(archive[MODEL]), "guards_code": [trap.code]}
    return {
        "example inputs": {"data/sample_inputs/model.pt": trap.saved},
        "weights of an older format": {"data/weights/model.pt": trap.saved},
        "constants of an older format": {"data/constants/model.pt": trap.saved},
        "a tree that imports a module": {MODEL: model},
        "guards": {MODEL: guarded},
    }


def test_hostile_parts_that_are_not_needed_are_not_read(network, archive, trap, tmp_path, monkeypatch):
    module = tmp_path / "modules" / f"{trap.path.stem}.py"
    module.parent.mkdir()
    module.write_text(f"{trap.code}\nx = {{'y': []}}")
    monkeypatch.syspath_prepend(module.parent)
    for name, change in hostile_parts(archive, trap).items():
        with torch.no_grad():
            torch.testing.assert_close(opened(archive | change, tmp_path), network(IMAGES), msg=name)


def pickled(archive, config, trap, path_name=None):
    """The members with the first weight or constant as a pickle."""
    changed = json.loads(archive[config])
    first = next(iter(changed["config"].values()))
    first["use_pickle"] = path_name is None
    first["path_name"] = path_name or first["path_name"]
    content = trap.saved if path_name is None else pickle.dumps(trap)
    folder = config.rpartition("/")[0]
    return {config: changed, f"{folder}/{first['path_name']}": content}


@pytest.mark.parametrize("path_name", [None, "opaque_obj_0", "custom_obj_0"])
@pytest.mark.parametrize("config", [WEIGHTS, CONSTANTS])
def test_pickles_are_refused(archive, trap, tmp_path, config, path_name):
    with pytest.raises(DataError, match="pickled weights or constants"):
        opened(archive | pickled(archive, config, trap, path_name), tmp_path)


def replaced(archive, old, new):
    """The members with part of a text of the model replaced wherever it stands; ^ and $ are its ends."""
    text = archive[MODEL].decode()
    old, new = (json.dumps(part)[1:-1].replace("^", '"').replace("$", '"') for part in (old, new))
    assert old in text
    return {MODEL: text.replace(old, new)}


def test_expressions_are_arithmetic(archive, trap, tmp_path):
    for evil in (f"{trap.code} or Symbol('", f"Integer(1).__class__ if {trap.code} else Symbol('"):
        with pytest.raises(DataError, match="no arithmetic"):
            opened(archive | replaced(archive, "Symbol('", evil), tmp_path)


def test_names_are_names(archive, trap, tmp_path):
    model = json.loads(archive[MODEL])
    model["range_constraints"][trap.code] = {"min_val": 0, "max_val": 4}
    for change in (
        replaced(archive, "^einsum$", f"^einsum = 0; {trap.code}; rest$"),
        replaced(archive, "^norm.weight$", f"^norm.weight or {trap.code}$"),
        {MODEL: model},
    ):
        with pytest.raises(DataError, match="could run code"):
            opened(archive | change, tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "_operator.attrgetter",
        "torch.ops.aten.relu.default.__init__",
    ],
)
def test_operations_are_those_on_tensors(archive, tmp_path, target):
    with pytest.raises(DataError, match="uses the operation"):
        opened(archive | replaced(archive, "torch.ops.aten.gelu.default", target), tmp_path)


def test_compiled_code_is_refused(archive, tmp_path):
    with pytest.raises(DataError, match="compiled code"):
        opened(archive | {"data/aotinductor/model/library.so": b""}, tmp_path)


def test_a_network_in_training_mode_is_refused(tmp_path):
    drops = nn.Sequential(nn.Dropout(), nn.AvgPool2d(16), nn.Flatten()).train()
    normalises = torch.export.export(Small().train(), (IMAGES,))
    for program in (normalises, normalises.run_decompositions(), torch.export.export(drops, (IMAGES,))):
        torch.export.save(program, tmp_path / "training.pt2")
        with pytest.raises(DataError, match=r"call eval\(\) first"):
            open_program(tmp_path / "training.pt2", CPU)


def test_damaged_and_foreign_files(archive, tmp_path):
    (tmp_path / "empty.pt2").write_bytes(b"")
    (tmp_path / "cut.pt2").write_bytes(written(archive, tmp_path / "whole.pt2").read_bytes()[:-300])
    torch.save({"a": 1}, tmp_path / "state.pt2")
    without = {name: content for name, content in archive.items() if "weight_0" not in name}
    newer = json.loads(archive[MODEL])
    newer["schema_version"]["major"] = 99
    for path in (
        tmp_path / "empty.pt2",
        tmp_path / "cut.pt2",
        tmp_path / "state.pt2",
        written(without, tmp_path / "without.pt2"),
        written(archive | {MODEL: newer}, tmp_path / "newer.pt2"),
    ):
        with pytest.raises(DataError, match=path.name):
            open_program(path, CPU)


def test_the_reason_is_what_torch_only_logs(archive, tmp_path):
    without = {name: content for name, content in archive.items() if "weight_0" not in name}
    with pytest.raises(DataError, match=r"weight_0: file not found"):
        opened(without, tmp_path)
