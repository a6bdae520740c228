"""Every preset loads, says where each of its values comes from, and is what its paper describes."""

import re

import pytest
import yaml

from gantx.config.presets import load, preset_folder, preset_names, preset_path
from gantx.config.schema import AttentionWindowConfig

PAPERS = [name for name in preset_names() if load(name).paper is not None]
ABLATION = {
    "no augmentation": (
        "augment.policy=[]",
        "generator.super_resolution=false",
        "generator.locality=none",
    ),
    "augmentation": ("generator.super_resolution=false", "generator.locality=none"),
    "augmentation, co-training": ("generator.locality=none",),
    "augmentation, co-training, locality": (),
}
# images of one epoch, last image of each step in epochs, window of each step
SCHEDULES = {
    "transgan-s": (50_000, (22, 32, 42, 60), (4, 6, 8, 10)),
    "transgan-m": (50_000, (22, 32, 42, 60), (4, 6, 8, 10)),
    "transgan-l": (50_000, (22, 32, 42, 60), (4, 6, 8, 10)),
    "transgan-xl": (50_000, (22, 32, 42, 60), (4, 6, 8, 10)),
    "transgan-xl-released": (50_000, (22, 32, 42, 60), (4, 6, 8, 10)),
    "transgan-stl10": (105_000, (22, 32, 42, 60), (4, 6, 8, 10)),
    "transgan-celeba64": (202_599, (5, 10, 15, 20), (8, 12, 16, 20)),
}


def values_of(node, path=""):
    """(dotted key, node) of every value; a list counts as one value."""
    if not isinstance(node, yaml.MappingNode):
        return [(path, node)]
    return [
        found for key, value in node.value for found in values_of(value, f"{path}.{key.value}".lstrip("."))
    ]


def without_source(text):
    """Dotted keys whose value is not followed, on its last line, by a comment of words."""
    lines = text.splitlines()
    return [
        key
        for key, node in values_of(yaml.compose(text))
        if not re.match(r"\s+#.*[^\W\d_]{2,}", lines[node.end_mark.line][node.end_mark.column :])
    ]


def repeated_keys(node, path=""):
    """Dotted keys that stand twice in one mapping, where YAML quietly drops the first."""
    if not isinstance(node, yaml.MappingNode):
        return []
    names = [key.value for key, _ in node.value]
    here = [f"{path}{name}" for name in sorted({name for name in names if names.count(name) > 1})]
    return here + [
        found for key, value in node.value for found in repeated_keys(value, f"{path}{key.value}.")
    ]


@pytest.mark.parametrize("name", preset_names())
def test_preset_loads_under_the_name_of_its_file(name):
    config = load(name)
    assert config.name == name
    assert config.summary


def test_a_child_has_a_summary_of_its_own():
    summaries = [load(name).summary for name in preset_names()]
    assert len(set(summaries)) == len(summaries)


@pytest.mark.parametrize("name", preset_names())
def test_every_value_names_its_source(name):
    assert without_source(preset_path(name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", preset_names())
def test_no_key_stands_twice(name):
    assert repeated_keys(yaml.compose(preset_path(name).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("kimg: 5  # paper, section 4", []),
        ("kimg: 5", ["training.kimg"]),
        ("kimg: 5  #", ["training.kimg"]),
        ("kimg: 5  # 80", ["training.kimg"]),
        ("kimg: 5  # -", ["training.kimg"]),
        ("kimg: '5 # paper'", ["training.kimg"]),
        ("kimg: [[1, 2], [3, 4]]", ["training.kimg"]),
        ("kimg: null", ["training.kimg"]),
        ("kimg: 5\n  # paper", ["training.kimg"]),
        ("batch: 5  # ours\n  kimg: 5", ["training.kimg"]),
    ],
)
def test_the_check_of_sources_sees_a_missing_one(line, missing):
    assert without_source(f"training:\n  {line}\n") == missing


def test_the_check_of_repeated_keys_sees_one():
    assert repeated_keys(yaml.compose("a:\n  b: 1\n  c: 2\n  b: 3\n")) == ["a.b"]


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_of_a_paper_says_what_the_paper_reports(name):
    config = load(name)
    assert config.paper.arxiv
    assert isinstance(config.reported["fid"], float)


@pytest.mark.parametrize(
    ("name", "score", "fid"),
    [
        ("transgan-s", 8.22, 18.58),
        ("transgan-m", 8.36, 16.27),
        ("transgan-l", 8.50, 14.46),
        ("transgan-xl", 8.63, 11.89),
        ("transgan-stl10", 10.10, 25.32),
    ],
)
def test_reported_figures(name, score, fid):
    reported = load(name).reported
    assert (reported["inception_score"], reported["fid"]) == (score, fid)


def test_figures_that_belong_to_another_network_say_so():
    assert "XL" in load("transgan-stl10").reported["note"]
    assert load("transgan-celeba64").reported["fid"] == 12.23
    assert not isinstance(load("transgan-celeba64").reported["inception_score"], float)


def test_a_preset_without_a_paper_reports_nothing():
    assert "transgan-tiny" not in PAPERS
    assert load("transgan-tiny").reported == {}


@pytest.mark.parametrize("name", ["transgan-s", "transgan-m", "transgan-l", "transgan-xl"])
def test_the_ablation_of_the_paper_is_four_overrides_of_one_preset(name):
    tricks = {
        row: (bool(config.augment.policy), config.generator.super_resolution, config.generator.locality)
        for row, config in ((row, load(name, overrides=keys)) for row, keys in ABLATION.items())
    }
    assert tricks == {
        "no augmentation": (False, False, "none"),
        "augmentation": (True, False, "none"),
        "augmentation, co-training": (True, True, "none"),
        "augmentation, co-training, locality": (True, True, "band"),
    }


def test_the_documented_ablation_is_this_one():
    page = preset_folder().parent / "docs" / "presets.md"
    if not page.is_file():
        pytest.skip("an installed package carries no documentation")
    text = page.read_text(encoding="utf-8")
    documented = [set(re.findall(r"[a-z_]+\.[a-z_]+=\S+", line)) for line in text.splitlines()]
    for keys in ABLATION.values():
        assert set(keys) in documented


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_locality_there_is_no_schedule_left(name):
    assert load(name, overrides=["generator.locality=none"]).training.attention_window is None


@pytest.mark.parametrize("name", SCHEDULES)
def test_window_steps_are_the_released_epochs(name):
    images, epochs, windows = SCHEDULES[name]
    expected = tuple(
        (round(epoch * images / 1000), window) for epoch, window in zip(epochs, windows, strict=True)
    )
    assert load(name).training.attention_window == AttentionWindowConfig(
        steps=expected, of_kimg=load(name).training.kimg
    )


@pytest.mark.parametrize(
    ("name", "batch", "generator_batch", "kimg"),
    [
        ("transgan-s", 64, 128, 80_000),
        ("transgan-xl", 64, 128, 80_000),
        ("transgan-xl-released", 32, 64, 80_000),
        ("transgan-stl10", 16, 32, 40_000),
        ("transgan-celeba64", 16, 32, 40_000),
    ],
)
def test_batches_and_lengths(name, batch, generator_batch, kimg):
    config = load(name)
    assert (config.training.batch, config.generator_batch, config.training.kimg) == (
        batch,
        generator_batch,
        kimg,
    )
    if name not in ("transgan-s", "transgan-xl"):  # the released scripts make 500,000 G steps
        assert 500_000 * config.objective.n_critic * batch == 1000 * kimg


def test_only_the_paper_recipes_co_train():
    co_training = {
        name for name in preset_names() if getattr(load(name).generator, "super_resolution", False)
    }
    assert co_training == {"transgan-s", "transgan-m", "transgan-l", "transgan-xl"}


def test_tiny_is_the_measured_recipe():
    config = load("transgan-tiny")
    assert config.generator.model_dump(exclude={"family", "mlp_ratio", "classes"}) == {
        "latent_dim": 64,
        "base_dim": 96,
        "base_size": 8,
        "depths": (2, 1),
        "heads": (4, 1),
        "rgb_patch": 2,
        "locality": "none",
        "super_resolution": False,
        "init": "compact",
    }
    objective = config.objective
    assert (objective.loss, objective.n_critic, objective.gradient_penalty) == ("relativistic", 1, None)
    assert [(p.gamma, p.every) for p in (objective.r1, objective.r2)] == [(0.1, 4), (0.1, 4)]
    assert config.optimizer.generator == config.optimizer.discriminator
    assert (config.optimizer.generator.lr, config.optimizer.generator.clip_norm) == (1e-3, None)
    assert config.training.batch == config.generator_batch == 16
