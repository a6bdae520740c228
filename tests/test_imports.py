"""Who may import whom: one way, light commands, networks that know no files; and what no file mentions.

The order below is the one of docs/architecture.md. A new module fails here until it is given its place.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gantx

PACKAGE = Path(gantx.__file__).parent
ROOT = PACKAGE.parent

# A module may import its own line and every line above it. A package stands for all its modules.
ORDER = [
    {"gantx.version", "gantx.errors"},
    {"gantx.runtime", "gantx.io"},
    {"gantx.config"},
    {"gantx.models"},
    {"gantx.data"},
    {"gantx.checkpoint"},
    {"gantx.generation"},
    {"gantx.evaluation"},
    {"gantx.generation.projection"},  # compares images by the features of an evaluation network
    {"gantx.generation.class_search"},  # projects into each class
    {"gantx.training"},
    {"gantx.benchmarking", "gantx.importing", "gantx.exporting"},
    {"gantx.api"},
    {"gantx.cli"},
    {"gantx", "gantx.__main__"},  # nothing imports the package itself
]
TORCH_FREE = (
    "gantx.errors",
    "gantx.io.atomic",
    "gantx.io.cache",
    "gantx.config",
    "gantx.evaluation.scores",
    "gantx.evaluation.gates",
    "gantx.evaluation.results",
    "gantx.evaluation.reports",
    "gantx.cli",
)
HEAVY = {"torch", "torchvision", "numpy", "PIL", "cleanfid", "safetensors"}
FILES_AND_DATA = {"pathlib", "io", "os", "shutil", "tempfile", "zipfile", "safetensors", "PIL", "torchvision"}
GENERIC_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}


def module_name(path):
    """gantx/data/sources.py -> gantx.data.sources; gantx/data/__init__.py -> gantx.data."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(tree, module, is_package, everywhere=True):
    """Names of modules that a module imports, relative imports resolved.

    `from a import b` gives a.b where that is a module of ours, else a. With `everywhere` false, the imports
    inside functions and under `if TYPE_CHECKING:` are left out.
    """
    found = []
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else source for name in names]
        elif everywhere or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            todo += ast.iter_child_nodes(node)
    return found


def rank_of(module):
    """Line of ORDER the module belongs to: that of its longest listed prefix."""
    for length in range(len(module.split(".")), 0, -1):
        prefix = ".".join(module.split(".")[:length])
        if prefix == "gantx" != module:
            break
        for rank, line in enumerate(ORDER):
            if prefix in line:
                return rank
    raise AssertionError(f"{module} has no place in ORDER: give it one, here and in docs/architecture.md")


def upward(tree, module, is_package):
    """Imports that go against ORDER."""
    own = rank_of(module)
    return [
        name
        for name in imports_of(tree, module, is_package)
        if name.split(".")[0] == "gantx" and rank_of(name) > own
    ]


def parse(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), str(MODULES[module]))


def is_package(module):
    return MODULES[module].name == "__init__.py"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    assert upward(parse(module), module, is_package(module)) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("gantx.config.schema", "from gantx import models", ["gantx.models"]),
        ("gantx.config.schema", "def late():\n    import gantx.models", ["gantx.models"]),
        (
            "gantx.errors",
            "if TYPE_CHECKING:\n    from gantx.config.schema import RunConfig",
            ["gantx.config.schema"],
        ),
        ("gantx.data.sources", "from ..training import loop", ["gantx.training"]),
        ("gantx.data.sources", "from . import prepare", []),
        (
            "gantx.models",
            "from gantx.config.section import Section\nfrom gantx.runtime.random import Draw",
            [],
        ),
        ("gantx.checkpoint", "from gantx.version import __version__", []),
        ("gantx.checkpoint", "import gantx\ngantx.load()", ["gantx"]),
        ("gantx.cli.sample", "from gantx import __version__", ["gantx"]),
        ("gantx.checkpoint", "from gantx import load", ["gantx"]),
        ("gantx.training.loop", "import gantx.cli.train", ["gantx.cli.train"]),
        ("gantx.cli.train", "import gantx.training", []),
    ],
)
def test_the_check_of_the_order_sees_a_wrong_import(module, source, wrong):
    found = upward(ast.parse(source), module, is_package=module == "gantx.models")
    assert [name if name in wrong else name.rpartition(".")[0] for name in found] == wrong


def test_a_module_without_a_place_is_noticed():
    with pytest.raises(AssertionError, match="no place"):
        rank_of("gantx.elsewhere")


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.startswith(TORCH_FREE) or name == "gantx"]
)
def test_light_modules_import_nothing_heavy_at_module_level(module):
    names = imports_of(parse(module), module, is_package(module), everywhere=False)
    assert {name.split(".")[0] for name in names} & HEAVY == set()


@pytest.mark.parametrize("module", ["gantx", *TORCH_FREE])
def test_importing_a_light_module_loads_nothing_heavy(module):
    if module == "gantx.cli" and not (PACKAGE / "cli" / "__init__.py").is_file():
        pytest.skip("gantx.cli is not there")
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert {name.split(".")[0] for name in json.loads(done.stdout)} & HEAVY == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("gantx.models")])
def test_networks_know_no_files_and_no_data(module):
    names = imports_of(parse(module), module, is_package(module))
    assert {name.split(".")[0] for name in names} & FILES_AND_DATA == set()
    assert [name for name in names if name.startswith(("torch.optim", "torch.utils.data"))] == []


def test_no_module_is_named_after_nothing():
    folders = [path for path in (PACKAGE, ROOT / "benchmarks") if path.is_dir()]
    stems = {path for folder in folders for path in folder.rglob("*") if path.suffix in ("", ".py")}
    assert [path for path in stems if path.stem.removeprefix("test_") in GENERIC_NAMES] == []


# Spelled in pieces, so that this file does not find itself.
FORBIDDEN = re.compile(
    "|".join(
        [
            r"(?<![\w.$}])/" + r"(?:work|home|root|Users)/[\w.-]+",
            r"/tmp" + r"/v/",
            r"files\.python" + r"hosted\.org",
            r"https?://pypi" + r"\.",
            r"index" + r"-url",
            r"artifact" + r"ory",
            r"registry" + r"\.npmjs",
        ]
    )
)


def tracked_files():
    """Files under version control and those that would be; without git, everything but hidden folders."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
        return [ROOT / name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        return [path for path in ROOT.rglob("*") if not any(part[0] == "." for part in path.parts[1:])]


def mentions(text):
    return [found.group() for found in FORBIDDEN.finditer(text)]


def test_no_file_mentions_a_machine_or_a_registry():
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    found = {}
    for path in tracked_files():
        if not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" not in content[:4096] and (wrong := mentions(content.decode("utf-8", "replace"))):
            found[str(path.relative_to(ROOT))] = wrong
    assert found == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("see /" + "work/main/x.py", 1),
        ("'/" + "home/someone/data'", 1),
        ("PYTHON=/tmp" + "/v/new/bin/python", 1),
        ("--index" + "-url x", 1),
        ("https://pypi" + ".org/simple", 1),
        ("~/data, $HOME/work/images and runs/home/a.png", 0),
        ("docs.example.org/work/paper", 0),
    ],
)
def test_the_check_of_mentions_sees_one(text, count):
    assert len(mentions(text)) == count


FAMILIES = ("transgan", "transgan2", "vitgan", "stylegan2", "ganformer", "dcgan", "implicit")


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("gantx.models.")])
def test_no_family_imports_another(module):
    family = module.split(".")[2]
    others = {f"gantx.models.{other}" for other in FAMILIES if other != family}
    names = {".".join(name.split(".")[:3]) for name in imports_of(parse(module), module, is_package(module))}
    assert names & others == set()


def test_no_file_is_too_long():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 600} == {}


# Where each is called: with its limits, and never with the right to run code or to start a program.
OPENERS = {
    "Image.open(": {"gantx.io.decoding"},
    "torch.load(": {"gantx.io.torch_files"},
    "np.load(": {"gantx.io.arrays", "gantx.data.containers", "gantx.data.prepare"},
    "pickle.load(": set(),
    "yaml.load(": set(),
}


@pytest.mark.parametrize("call", OPENERS)
def test_files_are_opened_where_their_limits_are(call):
    found = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    assert {name for name, text in found.items() if call in text} == OPENERS[call]
    safe = {"Image.open(": "formats=", "torch.load(": "weights_only=True", "np.load(": "allow_pickle=False"}
    for name in OPENERS[call]:
        assert all(safe[call] in line for line in found[name].splitlines() if call in line), name
