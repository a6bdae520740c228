"""A configuration is resolved in a known order, refuses what cannot be, and says what would be right."""

import sys
from pathlib import Path

import pytest
import yaml

from gantx.config import presets as module
from gantx.config.presets import (
    copy_preset,
    differences,
    load,
    preset_folder,
    preset_names,
    preset_path,
    validate,
)
from gantx.config.schema import RunConfig
from gantx.errors import MissingError, UsageError
from gantx.io.cache import cache_folder


@pytest.fixture
def write(tmp_path):
    """Write a YAML file into the test's folder and return its path."""

    def _write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def refusal(**arguments):
    with pytest.raises(UsageError) as caught:
        load(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def override_refusal(*overrides):
    return refusal(overrides=overrides)


# --- precedence -------------------------------------------------------------------------------------------


def test_nothing_given_is_the_defaults():
    assert load() == RunConfig()


def test_later_sources_win(write):
    one = write("one.yaml", "training: {batch: 8, seed: 1, samples: 4}")
    two = write("two.yaml", "training: {batch: 16, seed: 2}")
    arguments = {"preset": "transgan-s", "files": [one, two]}
    training = load(**arguments).training
    assert (training.samples, training.batch, training.seed) == (4, 16, 2)
    assert training.generator_batch == 128  # the preset's, named by no file

    flags = {"training.seed": 3, "data.source": "shapes"}
    training = load(**arguments, settings=flags).training
    assert (training.batch, training.seed) == (16, 3)

    config = load(**arguments, settings=flags, overrides=["training.seed=4", "training.seed=5"])
    assert config.training.seed == 5
    assert config.data.source == "shapes"


def test_a_list_is_replaced_not_merged():
    assert load("transgan-s", overrides=["augment.policy=[color]"]).augment.policy == ("color",)


def test_an_override_may_give_a_section():
    config = load("transgan-s", overrides=["training={batch: 8, samples: 4}"])
    assert (config.training.batch, config.training.samples) == (8, 4)
    assert config.training.kimg == 80_000


def test_a_resolved_configuration_can_be_the_base_of_another():
    base = load("transgan-tiny", overrides=["training.seed=3"])
    assert load(base=base) == base
    config = load(base=base, overrides=["training.samples=4"])
    assert differences(base, config) == ["training.samples"]
    assert load("transgan-s", base=base).training.batch == 64
    assert load("transgan-s", base=base).training.seed == 3


# --- names and inheritance --------------------------------------------------------------------------------


def test_name_is_the_presets_unless_something_says_otherwise(write):
    assert load("transgan-s").name == "transgan-s"
    assert load("transgan-m").name == "transgan-m"
    assert load("transgan-s", files=[write("mine.yaml", "training: {batch: 8}")]).name == "transgan-s"
    assert load("transgan-s", overrides=["name=other"]).name == "other"
    assert load(files=[write("child.yaml", "extends: transgan-s")]).name == "child"


def test_a_file_that_is_extended_may_be_named_with_its_ending(write):
    write("parent.yaml", "extends: transgan-s\ntraining: {batch: 8}")
    assert load(files=[write("child.yaml", "extends: parent.yaml")]).training.batch == 8


def test_extends_follows_a_chain_of_files_and_presets(write):
    write("parent.yaml", "extends: transgan-s\ntraining: {batch: 8, samples: 4}\nreported: {fid: 9}")
    child = write("child.yaml", "extends: parent\ntraining: {batch: 16}\nreported: {kid: 0.5}")
    config = load(files=[child])
    assert (config.training.batch, config.training.samples, config.training.kimg) == (16, 4, 80_000)
    assert config.reported == {**load("transgan-s").reported, "fid": 9, "kid": 0.5}
    assert config.name == "child"


def test_a_file_beside_wins_over_a_preset_of_the_same_name(write):
    write("transgan-s.yaml", "training: {batch: 4}")
    child = write("child.yaml", "extends: transgan-s")
    assert load(files=[child]).training.batch == 4


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_of_extends_is_refused(write, length):
    paths = [write(f"ring-{i}.yaml", f"extends: ring-{(i + 1) % length}") for i in range(length)]
    message = refusal(files=[paths[0]])
    assert "extends itself" in message
    assert str(paths[0]) in message


def test_two_children_of_one_parent_are_no_circle(write):
    one = write("one.yaml", "extends: transgan-s\ntraining: {batch: 8}")
    two = write("two.yaml", "extends: transgan-s\ntraining: {samples: 4}")
    assert load(files=[one, two]).training.samples == 4


def test_an_unknown_parent_names_the_closest_preset(write):
    assert "transgan-s" in refusal(files=[write("child.yaml", "extends: transgan-ss")])


# --- values of overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.batch=32", "training", "batch", 32),
        ("training.kimg=1.5", "training", "kimg", 1.5),
        ("training.kimg=2e3", "training", "kimg", 2000.0),
        ("training.kimg=5", "training", "kimg", 5.0),
        ("data.mirror=true", "data", "mirror", True),
        ("training.micro_batch=null", "training", "micro_batch", None),
        ("training.micro_batch=", "training", "micro_batch", None),
        ("training.threads=2", "training", "threads", 2),
        ("training.threads=auto", "training", "threads", "auto"),
        ("training.deterministic=false", "training", "deterministic", False),
        ("data.source=a=b", "data", "source", "a=b"),
        ("data.source='12'", "data", "source", "12"),
        ("augment.policy=[color, cutout]", "augment", "policy", ("color", "cutout")),
        ("generator.heads=[4, 2, 1]", "generator", "heads", (4, 2, 1)),
        ("generator.heads=2", "generator", "heads", 2),
    ],
)
def test_override_values_are_yaml(override, section, key, value):
    found = getattr(getattr(load(overrides=[override]), section), key)
    assert (found, type(found)) == (value, type(value))


def test_exponents_without_a_point_are_numbers():
    config = load(overrides=["optimizer.generator.lr=1e-3", "optimizer.generator.betas=[0.5, 0.9]"])
    assert config.optimizer.generator.lr == 0.001
    assert config.optimizer.generator.betas == (0.5, 0.9)


def test_null_turns_a_section_off_and_a_key_turns_it_on_again():
    off = load("transgan-tiny", overrides=["objective.r2=null"])
    assert off.objective.r2 is None
    on = load("transgan-s", overrides=["objective.r1.gamma=2"])
    assert (on.objective.r1.gamma, on.objective.r1.every) == (2, 1)


@pytest.mark.parametrize("text", ["training.batch", "=5", "", "training.batch:5"])
def test_an_override_without_key_and_value_is_refused(text):
    assert "key=value" in override_refusal(text)


def test_an_override_that_is_no_yaml_is_refused():
    message = override_refusal("augment.policy=[color")
    assert "augment.policy" in message
    assert "[color" in message


# --- unknown keys and values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "wrong", "meant"),
    [
        ("trainin.batch=3", "'trainin'", "'training'"),
        ("training.bach=3", "'training.bach'", "'batch'"),
        ("optimizer.generator.beta=3", "'optimizer.generator.beta'", "'betas'"),
        ("objective.gradient_penalty.wait=3", "'objective.gradient_penalty.wait'", "'weight'"),
        ("objective.r1.gama=3", "'objective.r1.gama'", "'gamma'"),
        ("data.shapes.cout=3", "'data.shapes.cout'", "'count'"),
        ("generator.dephts=[1]", "'generator.dephts'", "'depths'"),
        ("discriminator.patchsize=3", "'discriminator.patchsize'", "'patch_size'"),
    ],
)
def test_an_unknown_key_names_the_closest_one(override, wrong, meant):
    message = override_refusal(override)
    assert message.startswith(f"unknown key {wrong}")
    assert f"did you mean {meant}?" in message


def test_an_unknown_key_unlike_any_other_lists_the_known_ones():
    message = override_refusal("ema.zzz=1")
    assert "did you mean" not in message
    assert all(key in message for key in ("kind", "beta", "half_life_kimg", "ramp"))


def test_an_unknown_key_of_a_schedule_is_found():
    message = refusal(preset="transgan-s", overrides=["training.attention_window.step=[[1, 2]]"])
    assert message.startswith("unknown key 'training.attention_window.step' (did you mean 'steps'?)")


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("objective.loss=wgangp_eps", "objective.loss", "wgangp-eps"),
        ("generator.locality=bands", "generator.locality", "band"),
        ("augment.policy=[colour]", "augment.policy.0", "color"),
        ("augment.policy=[color, translate]", "augment.policy.1", "translation"),
        ("evaluation.protocol=clean-5k", "evaluation.protocol", "clean-50k"),
        ("training.precision=bf61", "training.precision", "bf16"),
        ("optimizer.discriminator.name=adamm", "optimizer.discriminator.name", "adam"),
    ],
)
def test_an_unknown_value_names_the_closest_one(override, key, meant):
    message = override_refusal(override)
    assert message.startswith(f"{key} cannot be")
    assert f"did you mean '{meant}'?" in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.batch=0", "training.batch"),
        ("training.batch=1.5", "training.batch"),
        ("training.batch=many", "training.batch"),
        ("training.batch=null", "training.batch"),
        ("training.kimg=-1", "training.kimg"),
        ("training.kimg=.nan", "training.kimg"),
        ("training.seed=-1", "training.seed"),
        ("training=5", "training"),
        ("training=null", "training"),
        ("data.resolution=2", "data.resolution"),
        ("data.mirror=perhaps", "data.mirror"),
        ("ema.beta=1.5", "ema.beta"),
        ("optimizer.generator.betas=[0, 1]", "optimizer.generator.betas.1"),
        ("optimizer.decay_from=2", "optimizer.decay_from"),
        ("generator.heads=none", "generator.heads"),
        ("generator.depths=[]", "generator.depths"),
        ("generator.depths=[5, 0]", "generator.depths.1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(override, key):
    assert override_refusal(override).startswith(f"{key} cannot be ")


# --- what does not go together ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.resolution=64"], ("generator", "32 pixels", "data.resolution is 64")),
        (
            ["data.resolution=64", "generator.base_size=16"],
            ("discriminator", "32 pixels", "discriminator.resolution=64"),
        ),
        (["generator.base_dim=100"], ("generator", "base_dim 100", "divisible by 16")),
        (["generator.heads=[4, 4]"], ("generator", "names 2 stages", "names 3")),
        (["generator.heads=5"], ("generator", "stage 1 has 384 channels", "5 heads")),
        (["generator.heads=[4, 4, 5]"], ("generator", "stage 3 has 24 channels", "5 heads")),
        (
            ["generator.depths=[2]", "generator.rgb_patch=4"],
            ("generator", "super_resolution", "second stage"),
        ),
        (["discriminator.patch_size=5"], ("discriminator", "patch_size 5", "resolution 32")),
        (["discriminator.heads=7"], ("discriminator", "dim 384", "7 heads")),
        (["objective.gradient_penalty=null"], ("objective", "wgangp-eps", "gradient_penalty")),
        (
            ["objective.loss=wgangp", "objective.gradient_penalty=null"],
            ("objective", "wgangp ", "gradient_penalty"),
        ),
        (["training.micro_batch=48"], ("training.batch", "64", "micro_batch 48")),
        (
            ["training.micro_batch=64", "training.generator_batch=96"],
            ("training.generator_batch", "96", "micro_batch 64"),
        ),
        (
            ["objective.loss=relativistic", "training.generator_batch=128"],
            ("training.generator_batch", "relativistic", "training.batch"),
        ),
        (
            ["training.attention_window={steps: [[2, 4], [1, 8]], of_kimg: 3}"],
            ("training.attention_window", "ordered"),
        ),
        (
            ["training.attention_window={steps: [[1, 4], [1, 8]], of_kimg: 3}"],
            ("training.attention_window", "ordered"),
        ),
    ],
)
def test_impossible_combinations_are_refused(overrides, words):
    message = override_refusal(*overrides)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.resolution=64", "generator.base_size=16", "discriminator.resolution=64"],
        ["generator.depths=[2]", "generator.rgb_patch=4", "generator.super_resolution=false"],
        ["generator.heads=[4, 4, 6]"],
        ["objective.loss=hinge", "objective.gradient_penalty=null"],
        ["training.micro_batch=32", "training.generator_batch=96"],
        ["objective.loss=relativistic", "training.generator_batch=64"],
        ["training.attention_window={steps: [[1, 4], [2, 8]], of_kimg: 3}"],
    ],
)
def test_the_possible_neighbours_of_those_are_taken(overrides):
    load(overrides=overrides)


def test_generator_batch_is_the_batch_unless_given():
    assert load(overrides=["training.batch=32"]).generator_batch == 32
    assert load(overrides=["training.generator_batch=128"]).generator_batch == 128


def test_a_schedule_without_locality_is_dropped():
    config = load("transgan-s", overrides=["generator.locality=none"])
    assert config.training.attention_window is None
    assert load("transgan-s", overrides=["generator.locality=neighbourhood"]).training.attention_window


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load().training.batch = 5


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: [", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("- 1\n- 2", "not a list"),
        ("just words", "not a str"),
        ("training:\n\tbatch: 5", "not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(write, text, words):
    path = write("wrong.yaml", text)
    message = refusal(files=[path])
    assert str(path) in message
    assert words in message


def test_a_file_of_bytes_is_refused_by_name(tmp_path):
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    assert str(path) in refusal(files=[path])


def test_a_folder_in_place_of_a_file_is_refused_by_name(tmp_path):
    assert str(tmp_path) in refusal(files=[tmp_path])


def test_an_absent_file_is_missing(tmp_path):
    with pytest.raises(MissingError, match=r"absent\.yaml"):
        load(files=[tmp_path / "absent.yaml"])


def test_a_name_with_a_space_is_refused_in_words():
    words = refusal(overrides=["name=my run"])
    assert words.startswith("name cannot be 'my run': use at most 64 letters, digits")


def test_a_key_given_twice_is_refused(write):
    path = write("twice.yaml", "training:\n  batch: 8\ntraining:\n  seed: 1\n")
    words = refusal(files=[path])
    assert "the key 'training' of line 1 is given again" in words
    assert "line 3, column 1" in words
    path = write("below.yaml", "name: a\ntraining:\n  seed: 1\n  batch: 8\n  seed: 2\n")
    words = refusal(files=[path])
    assert "the key 'seed' of line 3 is given again" in words
    assert "line 5, column 3" in words


def test_a_copy_that_kept_its_presets_name_extends_the_preset(write):
    path = write("transgan-s.yaml", "extends: transgan-s\ntraining: {seed: 9}\n")
    config = load(files=[path])
    assert (config.training.seed, config.generator.base_dim) == (9, 384)


def test_a_base_is_changed_by_overrides_only():
    base = load("transgan-tiny", overrides=["training.seed=5"])
    assert load(base=base) == base
    assert load(base=base, overrides=["training.batch=8"]).training.seed == 5


def test_values_that_yaml_reads_as_numbers_can_be_names():
    assert load(overrides=["data.source=2024", "name=1"]).data.source == "2024"


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_file_changes_nothing(write, text):
    assert load("transgan-s", files=[write("empty.yaml", text)]) == load("transgan-s")


@pytest.mark.parametrize("name", preset_names())
def test_printed_configuration_reads_back(write, name):
    config = load(
        name, overrides=["training.seed=7"], settings={"data.source": "12", "summary": "größer: # no"}
    )
    text = config.to_yaml()
    assert load(files=[write("config.yaml", text)]) == config
    assert validate(yaml.safe_load(text)) == config


@pytest.mark.parametrize("number", ["1e-7", "1e-30", "0.1", "1e22", "3"])
def test_small_and_large_numbers_read_back(write, number):
    config = load(overrides=[f"optimizer.generator.eps={number}"])
    assert load(files=[write("config.yaml", config.to_yaml())]).optimizer.generator.eps == float(number)


def test_validate_takes_what_a_checkpoint_carries():
    config = load("transgan-tiny")
    assert validate(config.model_dump(mode="json")) == config
    with pytest.raises(UsageError, match="unknown key 'traning'"):
        validate({"traning": {}})


# --- differences ------------------------------------------------------------------------------------------


def test_differences_names_what_changed():
    old = load("transgan-s")
    assert differences(old, old) == []
    new = load(
        "transgan-s", overrides=["training.seed=1", "optimizer.generator.lr=2e-4", "augment.policy=[]"]
    )
    assert differences(old, new) == ["augment.policy", "optimizer.generator.lr", "training.seed"]
    assert differences(new, old) == differences(old, new)


def test_differences_sees_a_section_turned_off():
    old = load("transgan-tiny")
    new = load("transgan-tiny", overrides=["objective.r1=null"])
    assert differences(old, new) == ["objective.r1.every", "objective.r1.gamma"]


# --- presets ----------------------------------------------------------------------------------------------


def test_presets_are_found_beside_the_package():
    assert preset_path("transgan-tiny").is_file()
    assert preset_names() == sorted(preset_names())
    assert "transgan-tiny" in preset_names()


@pytest.mark.parametrize("place", ["site/gantx/presets", "site/presets"])
def test_presets_are_found_inside_and_beside(tmp_path, monkeypatch, place):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "only.yaml").write_text("training: {batch: 8}")
    (folder / "README.md").write_text("no preset")
    (tmp_path / "site" / "gantx").mkdir(exist_ok=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site" / "gantx" / "config" / "presets.py"))
    assert preset_folder() == folder
    assert preset_names() == ["only"]
    assert load("only").name == "only"


def test_presets_inside_the_package_win(tmp_path, monkeypatch):
    for place in ("gantx/presets", "presets"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "gantx" / "config" / "presets.py"))
    assert preset_folder() == tmp_path / "gantx" / "presets"


def test_no_presets_folder_is_a_broken_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "gantx" / "config" / "presets.py"))
    with pytest.raises(MissingError, match="reinstall"):
        preset_names()


def test_an_unknown_preset_names_the_closest_one():
    message = refusal(preset="transgan-tini")
    assert "no preset named 'transgan-tini' (did you mean 'transgan-tiny'?)" in message
    assert "gantx presets ls" in message


@pytest.mark.parametrize("name", ["../presets/transgan-s", "/etc/passwd", ""])
def test_a_preset_is_a_name_not_a_path(name):
    assert "no preset named" in refusal(preset=name)


def test_copy_preset_into_a_folder_and_to_a_file(tmp_path):
    inside = copy_preset("transgan-m", tmp_path)
    assert inside == tmp_path / "transgan-m.yaml"
    assert inside.read_bytes() == preset_path("transgan-m").read_bytes()
    named = copy_preset("transgan-m", tmp_path / "new" / "mine.yaml")
    assert named == tmp_path / "new" / "mine.yaml"
    # the copy still finds its parent among the presets, and differs from the preset in name only
    assert differences(load("transgan-m"), load(files=[named])) == ["name"]


def test_copy_preset_overwrites_nothing(tmp_path):
    kept = tmp_path / "transgan-s.yaml"
    kept.write_text("mine")
    for destination in (tmp_path, kept):
        with pytest.raises(UsageError, match="already exists"):
            copy_preset("transgan-s", destination)
    assert kept.read_text() == "mine"


def test_copy_preset_of_an_unknown_name_or_to_an_impossible_place(tmp_path):
    with pytest.raises(UsageError, match="no preset named"):
        copy_preset("transgan", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingError, match="cannot write"):
        copy_preset("transgan-s", tmp_path / "file" / "mine.yaml")


# --- cache ------------------------------------------------------------------------------------------------


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GANTX_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("GANTX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "gantx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "gantx"
    monkeypatch.setenv("GANTX_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "gantx"


def test_another_family_takes_nothing_from_the_one_before():
    settings = load("transgan-s", overrides=["discriminator={family: vitgan, dim: 96}"])
    assert settings.discriminator.family == "vitgan"
    assert settings.discriminator.dim == 96
    assert settings.discriminator.depth == 4  # ViTGAN's own default, not the 7 of the preset
    assert settings.generator.family == "transgan"
    again = validate(yaml.safe_load(settings.to_yaml()))
    assert again == settings


def test_families_and_their_keys_are_explained():
    with pytest.raises(UsageError, match=r"generator\.family cannot be 'vitgam' \(did you mean 'vitgan'\?\)"):
        load("transgan-s", overrides=["generator.family=vitgam"])
    with pytest.raises(
        UsageError, match=r"unknown key 'discriminator\.overlapp' \(did you mean 'overlap'\?\)"
    ):
        load("transgan-s", overrides=["discriminator={family: vitgan, overlapp: 1}"])
    with pytest.raises(UsageError, match=r"discriminator: dim 50 cannot be shared by 6 heads"):
        load("transgan-s", overrides=["discriminator={family: vitgan, dim: 50}"])


def test_a_key_of_earlier_checkpoints_is_dropped_and_refused_where_it_meant_something():
    tree = load().model_dump(mode="json")
    former = {**tree, "objective": {**tree["objective"], "gradient_leak": False}}
    assert validate(former) == load()
    with pytest.raises(UsageError, match=r"gradient_leak.*no longer repeated: leave it out"):
        load(overrides=["objective.gradient_leak=true"])


def test_levels_are_counted_whatever_the_limit_of_recursion(write):
    deep = write("deep.yaml", "a: " + "[" * 2000 + "]" * 2000)
    limit = sys.getrecursionlimit()
    for changed in (limit, 20_000):
        sys.setrecursionlimit(changed)
        try:
            with pytest.raises(UsageError, match="more than 32 levels"):
                load(files=[deep])
        finally:
            sys.setrecursionlimit(limit)
