"""Presets, files and overrides are resolved to a RunConfig.

Values come from the defaults of the schema, the preset, `--config FILE`, and the command line (`key=value`,
dotted); later ones override earlier ones. A file may say `extends: other`. Imports no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gantx.config import resolutions
from gantx.config.messages import explain
from gantx.config.schema import RunConfig
from gantx.errors import MissingError, UsageError, closest, first_line
from gantx.io.atomic import replacing
from gantx.io.escaping import printable, shortened


def preset_folder() -> Path:
    """The folder of the presets: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "presets", package.parent / "presets"):
        if folder.is_dir():
            return folder
    raise MissingError(f"no presets folder in or beside {package}: reinstall gantx")


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The YAML file of a preset; UsageError with the closest name when there is none."""
    names = preset_names()
    if name not in names:
        raise UsageError(f"no preset named '{name}'{closest(name, names)}: `gantx presets ls` lists them all")
    return preset_folder() / f"{name}.yaml"


def copy_preset(name: str, destination: Path) -> Path:
    """Copy a preset to a file or into a folder for editing; UsageError when the file is already there."""
    source = preset_path(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise UsageError(f"{target} already exists: remove it or name another file")
    with replacing(target) as beside:
        shutil.copyfile(source, beside)
    return target


def load(
    preset: str | None = None,
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
    settings: Mapping[str, Any] | None = None,
    base: RunConfig | None = None,
) -> RunConfig:
    """Resolve a configuration: defaults < base < preset < files < settings < overrides.

    Args:
        preset: name of a preset, or None.
        files: YAML files; later ones override earlier ones.
        overrides: `key=value` texts with dotted keys and YAML values.
        settings: dotted keys and values that come from command-line flags.
        base: a resolved configuration that replaces the defaults.

    Raises:
        UsageError: a file, key or value is wrong; the message names the closest valid one.
    """
    tree: dict[str, Any] = base.model_dump(mode="json") if base else {}
    if preset is not None:
        tree = _merge(tree, _read_with_parents(preset_path(preset), ()))
        tree.setdefault("name", preset)
    for path in files:
        tree = _merge(tree, _read_with_parents(path, ()))
    for key, value in (settings or {}).items():
        tree = _merge(tree, _nest(key, value))
    for text in overrides:
        tree = _merge(tree, _nest(*_split_override(text)))
    return validate(tree)


def load_at_resolution(
    resolution: int,
    preset: str | None = None,
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
    settings: Mapping[str, Any] | None = None,
    base: RunConfig | None = None,
) -> tuple[RunConfig, str]:
    """As `load`, with the sizes of both networks chosen for a resolution; overrides win over the choice.

    Args:
        resolution: height and width of the images, in pixels.
        preset: see `load`.
        files: see `load`.
        overrides: see `load`.
        settings: see `load`.
        base: see `load`.

    Returns:
        The configuration, and what was chosen, as overrides.

    Raises:
        UsageError: the networks cannot have this resolution, or see `load`.
    """
    files, overrides = list(files), list(overrides)
    try:
        native = load(preset, files, overrides, settings, base)
    except UsageError:  # overrides that fit the new resolution alone
        native = load(preset, files, (), settings, base)
    try:
        chosen = resolutions.at_resolution(native.generator, native.discriminator, resolution)
    except resolutions.Unbuildable as problem:
        raise UsageError(f"--resolution {resolution}: {problem}") from None
    values = {**(settings or {}), "data.resolution": resolution, **chosen}
    return load(preset, files, overrides, values, base), resolutions.as_overrides(chosen)


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a plain tree of settings; UsageError names the first wrong key and what would be valid."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as problem:
        raise UsageError(explain(problem)) from None


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Dotted keys whose values differ, sorted."""
    before, after = flat(old), flat(new)
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def flat(config: RunConfig) -> dict[str, Any]:
    """All values by their dotted keys, as JSON has them."""
    return _flatten(config.model_dump(mode="json"))


def with_values_of(config: RunConfig, other: RunConfig, keys: Iterable[str]) -> RunConfig:
    """A configuration in which the fields behind some dotted keys are those of another.

    Args:
        config: the configuration.
        other: where the fields come from.
        keys: of `section.field`, or deeper, which then means all of the field.
    """
    tree, source = config.model_dump(mode="json"), other.model_dump(mode="json")
    for key in keys:
        section, _, rest = key.partition(".")
        field = rest.partition(".")[0]
        tree[section][field] = source[section][field]
    return validate(tree)


def automatic(config: RunConfig) -> list[str]:
    """Dotted keys whose values are left to the program: `auto`, or None where that means the same."""
    return [
        key
        for key, value in flat(config).items()
        if value == "auto" or (key in _NONE_IS_AUTO and value is None)
    ]


_NONE_IS_AUTO = ("training.deterministic", "initialization.digest")


LONGEST_FILE = 2**18  # bytes of a configuration
LONGEST_CHAIN = 16  # files that extend one another
MOST_VALUES = 5_000  # of a configuration, each counted as often as an alias repeats it
DEEPEST = 32  # levels of a configuration
LONGEST_NUMBER = 400  # characters of a number


def _read_with_parents(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path in children:
        raise UsageError(f"{path} extends itself through {children[-1].name}: remove one `extends`")
    if len(children) >= LONGEST_CHAIN:
        raise UsageError(
            f"{children[0]} extends more than {LONGEST_CHAIN} files, one through the other: "
            "extend a nearer one"
        )
    tree = _read_yaml(path)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str) or not parent.isprintable() or len(parent) > 200:
        raise UsageError(f"{path}: extends names a preset or a file beside it, as text")
    parent = parent.removesuffix(".yaml")
    beside = path.parent / f"{parent}.yaml"
    # A copy named like the preset that it extends means the preset, not itself.
    local = beside.is_file() and not (beside == path and parent in preset_names())
    base = _read_with_parents(beside if local else preset_path(parent), (*children, path))
    tree.setdefault("name", path.stem)
    return _merge(base, tree)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise UsageError(f"{path} is no configuration: it has more than {LONGEST_FILE:,} bytes")
        tree = _parse(content.decode("utf-8"))
    except FileNotFoundError as problem:
        raise MissingError(f"no such configuration file: {path}") from problem
    except OSError as problem:
        raise UsageError(f"cannot read configuration {path}: {problem.strerror or problem}") from problem
    except (yaml.YAMLError, ValueError) as problem:
        what = printable(" ".join(str(problem).split()))[:500]
        raise UsageError(f"{path} is not valid YAML: {what}") from problem
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{path} must contain sections such as `training:`, not a {type(tree).__name__}")
    return tree


def _parse(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: it is too large, too deep, or has a value that is none of its type.
        yaml.YAMLError: it is not YAML.
    """
    loader = _UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, ())
        return loader.construct_document(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as problem:
        # What PyYAML raises for `!!int x`, `!!bool x` and the like.
        raise ValueError(f"a value that is not of its type ({first_line(problem)})") from problem
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Number of values in a node with those that its aliases repeat; ValueError above the limits."""
    if id(node) in above:
        raise ValueError("a value that contains itself")
    if len(above) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} levels")
    if id(node) in known:
        return known[id(node)]
    total = 1
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > LONGEST_NUMBER and not node.tag.endswith(":str"):
            raise ValueError(f"a number of {len(node.value):,} characters in line {node.start_mark.line + 1}")
    else:
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        total += sum(_count(part, known, (*above, id(node))) for part in parts)
    if total > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values, counted as often as aliases repeat them")
    known[id(node)] = total
    return total


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice is an error: YAML would drop the first."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As the base class, but not deeper than `DEEPEST`, whatever Python's limit of recursion is."""
        self.depth += 1
        if self.depth > DEEPEST + 1:
            raise ValueError(f"more than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; ConstructorError when a key repeats."""
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor` is not a key
        nodes = [key for key, _ in node.value if key.tag != merge]
        keys = [self.construct_object(key, deep=True) for key in nodes]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                first = nodes[keys.index(key)].start_mark.line + 1
                what = f"the key '{key}' of line {first} is given again"
                raise yaml.constructor.ConstructorError(None, None, what, nodes[index].start_mark)
        return super().construct_mapping(node, deep)


def _split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        shown = shortened(text)[1:-1]
        raise UsageError(f"'{shown}' is not an override: write key=value, for example training.batch=32")
    if key.count(".") > DEEPEST or len(key) > 1000:
        raise UsageError(f"{shortened(key)} is no key: the keys have fewer than {DEEPEST} parts")
    try:
        if len(value) > LONGEST_FILE:
            raise ValueError(f"more than {LONGEST_FILE:,} characters")
        return key, _parse(value)
    except (yaml.YAMLError, ValueError) as problem:
        raise UsageError(f"{key}: '{shortened(value)[1:-1]}' is not a YAML value") from problem


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    if top.get("family", base.get("family")) != base.get("family"):
        return dict(top)  # another network, for which the settings of this one have no meaning
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
