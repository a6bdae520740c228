"""Official snapshots of GANformer become checkpoints: the right networks under the right settings."""

import copy
import json
import re
import shlex

import pytest
import torch
from helpers.golden_file import ROOT, GoldenFile, find_golden
from helpers.official_snapshot import Network, pickled
from safetensors.torch import load_file, save_file

from gantx import models
from gantx.config import presets
from gantx.config.networks import GANformerGeneratorConfig, StyleGAN2DiscriminatorConfig
from gantx.errors import CheckpointError
from gantx.generation import sampling
from gantx.importing import files
from gantx.importing.ganformer import ganformer_discriminator, ganformer_generator
from gantx.importing.reading import read_snapshot

CPU = torch.device("cpu")
SNAPSHOT = "gansformer/snapshot_duplex_16.pkl"
SMALL = (
    "data.resolution=16",
    "generator={family: ganformer, resolution: 16, components: 4, latent_dim: 8, attention: kmeans,"
    " channel_base: 128, channel_max: 8}",
    "discriminator={family: stylegan2, resolution: 16, channel_base: 128, channel_max: 8}",
)
PAPER = (
    "data.resolution=256",
    "generator={family: ganformer, attention: kmeans}",
    "discriminator={family: stylegan2, resolution: 256}",
)


def recorded(tmp_path):
    """The golden outputs under the names that a check reads."""
    golden = load_file(find_golden("gansformer/snapshot_duplex_16_expected.safetensors"))
    path = tmp_path / "recorded.safetensors"
    tensors = {
        "input.z": golden["in/z"],
        "output.Gs": golden["out/Gs_img_const"],
        "input.x": golden["out/Gs_img_const"].clone(),
        "output.D": golden["out/D_logits"],
    }
    save_file(tensors, path)
    return path, tensors


def fitting(problem):
    """The overrides that a message names, as a shell would pass them on."""
    return shlex.split(re.search(r": add (.*)$", str(problem.value))[1])


def converted(path, overrides):
    """What a file becomes when the overrides that it asks for are added, and the configuration."""
    with pytest.raises(CheckpointError, match="is of other settings than this configuration: add ") as told:
        files.convert(path, presets.load(overrides=overrides))
    settings = presets.load(overrides=[*overrides, *fitting(told)])
    return files.convert(path, settings), settings


def test_an_official_snapshot_generates_and_discriminates_as_before(tmp_path):
    settings = presets.load(overrides=SMALL)
    conversion = files.convert(find_golden(SNAPSHOT), settings)
    assert list(conversion.parts) == ["generator", "generator_ema", "discriminator"]
    assert conversion.skipped == ("dataset_args",)
    path, tensors = recorded(tmp_path)
    differences = files.compare(conversion, path)
    assert [difference.name for difference in differences] == ["output.Gs", "output.D"]
    files.require_close(differences, path)

    files.write(tmp_path / "c.safetensors", conversion, settings)
    generator, header = sampling.open_generator(tmp_path / "c.safetensors", CPU)
    torch.testing.assert_close(generator(tensors["input.z"]), tensors["output.Gs"], rtol=1e-4, atol=1e-5)
    assert header.config == settings
    assert header.data["imported_from"]["file"] == "snapshot_duplex_16.pkl"
    assert float(generator.w_avg.abs().max()) > 0


def test_every_key_is_imported_or_ignored_for_a_reason():
    conversion = files.convert(find_golden(SNAPSHOT), presets.load(overrides=SMALL))
    golden = load_file(find_golden("gansformer/snapshot_duplex_16_expected.safetensors"))
    for part, official in conversion.called.items():
        imported = conversion.parts[part]
        keys = {key.partition("/")[2] for key in golden if key.startswith(f"{official}/")}
        assert imported.names.keys() | imported.ignored.keys() == keys
        assert not imported.names.keys() & imported.ignored.keys()
    reasons = set(conversion.parts["generator_ema"].ignored.values())
    assert len(reasons) == 3, reasons  # constants, biases of keys, keys that k-means leaves idle


def test_other_settings_are_answered_with_the_overrides_that_fit(tmp_path):
    conversion, settings = converted(find_golden(SNAPSHOT), PAPER)
    assert settings.data.resolution == 16
    path, _ = recorded(tmp_path)
    files.require_close(files.compare(conversion, path), path)


def test_another_family_is_answered_with_the_section_that_fits():
    overrides = ("data.resolution=16", *SMALL[1:2], "discriminator={family: vitgan, resolution: 16}")
    _, settings = converted(find_golden(SNAPSHOT), overrides)
    assert settings.discriminator == presets.load(overrides=SMALL).discriminator


def test_settings_that_mean_the_same_may_be_spelled_as_one_likes():
    spelled = (
        "generator.kmeans_iterations=1", "generator.update_latents=false", "generator.attention_to=512",
        "generator.grid_dim=8", "generator.channel_base=4096", "discriminator.channel_base=512",
    )  # fmt: skip
    settings = presets.load(overrides=[*SMALL, *spelled])
    conversion = files.convert(find_golden(SNAPSHOT), settings)
    assert conversion.parts["generator"].section == settings.generator
    for other in (
        "generator.kmeans_iterations=2",
        "generator.attention_to=8",
        "generator.latent_norm=component",
    ):
        with pytest.raises(CheckpointError, match=other.partition("=")[0]):
            files.convert(find_golden(SNAPSHOT), presets.load(overrides=[*SMALL, other]))


# --- all kinds of networks ----------------------------------------------------------------------------------


def arguments_of(shape):
    """What the official code builds the generator of a golden file with."""
    mapping = {
        "num_layers": shape.get("mapping_num_layers", 8),
        "resnet": shape.get("mapping_resnet", False),
        "ltnt2ltnt": shape.get("mapping_ltnt2ltnt", False),
        "use_pos": shape.get("use_pos", False),
        "num_heads": shape.get("num_heads", 1),
        "transformer": shape["transformer"],
    }
    renamed = {"architecture": "arch", "start_res": "start_res", "end_res": "end_res"}
    same = ("transformer", "style", "channel_base", "channel_max", "use_pos", "num_heads", "norm",
            "integration", "img_gate", "kmeans", "kmeans_iters")  # fmt: skip
    painting = {name: shape[key] for name, key in renamed.items() if key in shape}
    painting |= {name: shape[name] for name in same if name in shape}
    return {"k": shape["k_total"], "c_dim": 0, "mapping_kwargs": mapping, "synthesis_kwargs": painting}


@pytest.mark.parametrize(
    "name",
    [
        "g_simplex_16",
        "g_duplex_16",
        "g_duplex_iters3_heads2_16",
        "g_clevr_style_false_duplex_16",
        "g_simplex_both_instance_gate_skip_32",
        "g_stylegan2_skip_16",
    ],
)
def test_every_kind_of_generator_generates_as_before(monkeypatch, tmp_path, name):
    golden = GoldenFile(f"gansformer/{name}")
    network = Network(golden.prefix("param/"), arguments_of(golden.config))
    path, outputs = tmp_path / "network-snapshot-000001.pkl", tmp_path / "outputs.safetensors"
    path.write_bytes(pickled(monkeypatch, {"Gs": network}))
    conversion, settings = converted(path, PAPER)
    assert settings.data.resolution == golden.config["res"]
    save_file({"input.z": golden["in/z"], "output.Gs": golden["out/img_const"]}, outputs)
    files.require_close(files.compare(conversion, outputs), outputs)


def test_a_conditional_discriminator_discriminates_as_before():
    golden = GoldenFile("gansformer/d_resnet_32_cond")
    arguments = {"c_dim": 3, "epilogue_kwargs": {"mbstd_group_size": 2}}
    imported = ganformer_discriminator(golden.prefix("param/"), arguments, presets.load().discriminator)
    network = models.build(imported.section)
    network.load_state_dict(imported.tensors)
    expected = golden["out/logits"][:, 0]
    torch.testing.assert_close(
        network(golden["in/img"], labels=golden["in/c"].argmax(1)), expected, rtol=1e-4, atol=1e-5
    )


def full_size(name):
    """The state dict of a full-size network, without its numbers."""
    path = ROOT.parent / "shared" / "specs" / "keys" / "gansformer_256.json"
    if not path.is_file():
        pytest.skip("the key list of GANformer is not here")
    listed = json.loads(path.read_text(encoding="utf-8"))[name]
    return {key: torch.empty(entry["shape"], device="meta") for key, entry in listed.items()}


@pytest.mark.parametrize(
    ("name", "components", "latent_dim", "clevr"),
    [("G_default_256_k16_latent512", 16, 32, False), ("G_clevr_256_k8_latent128", 8, 16, True)],
)
def test_the_key_lists_of_the_full_size_networks_are_understood(name, components, latent_dim, clevr):
    state = full_size(name)
    painting = {"architecture": "resnet", "style": not clevr, "norm": "layer", "integration": "mul"}
    arguments = {
        "k": components + 1,
        "mapping_kwargs": {"use_pos": True},
        "synthesis_kwargs": {**painting, "use_pos": True},
    }
    kind = "kmeans" if any(key.endswith("centroids") for key in state) else "simplex"
    wanted = GANformerGeneratorConfig(
        components=components,
        latent_dim=latent_dim,
        attention=kind,
        mapping_attention=not clevr,
        style=not clevr,
    )
    imported = ganformer_generator(state, arguments, wanted)
    assert imported.section == wanted
    assert imported.names.keys() | imported.ignored.keys() == state.keys()


def test_the_full_size_discriminator_is_understood():
    state, wanted = full_size("D_256"), StyleGAN2DiscriminatorConfig(resolution=256)
    assert ganformer_discriminator(state, {}, wanted).section == wanted


# --- what cannot be imported --------------------------------------------------------------------------------


def official_generator():
    """Tensors and arguments of the averaged generator of the official snapshot."""
    network = read_snapshot(find_golden(SNAPSHOT))["Gs"]
    return network.tensors, copy.deepcopy(network.arguments)


def test_a_snapshot_converted_from_tensorflow_may_have_either_norm():
    state, arguments = official_generator()
    arguments["mapping_kwargs"]["normalize_global"] = False
    for norm in ("joint", "component"):
        wanted = presets.load(overrides=[*SMALL, f"generator.latent_norm={norm}"]).generator
        section = ganformer_generator(state, arguments, wanted).section
        assert (section.latent_norm, section.normalize_global) == (norm, False)


@pytest.mark.parametrize(
    ("half", "option", "value"),
    [
        ("synthesis_kwargs", "iterative", True),
        ("synthesis_kwargs", "latent_stem", True),
        ("synthesis_kwargs", "pos_type", "linear"),
        ("mapping_kwargs", "shared", True),
        ("mapping_kwargs", "use_pos", False),
        ("mapping_kwargs", "num_heads", 2),
    ],
)
def test_options_without_a_counterpart_are_refused_by_name(half, option, value):
    state, arguments = official_generator()
    arguments[half][option] = value
    with pytest.raises(CheckpointError, match=f"{option}.*no counterpart"):
        ganformer_generator(state, arguments, presets.load(overrides=SMALL).generator)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"pos": None}, "misses pos"),
        ({"synthesis.b8.skip.weight": None}, r"misses synthesis\.b8\.skip\.weight"),
        ({"synthesis.b4.const": None}, r"it has no synthesis\.b4\.const"),
        ({"synthesis.b8.conv1.weight": None}, r"it has no synthesis\.b8\.conv1\.weight"),
        ({"mapping.embed.weight": torch.zeros(1)}, r"unknown mapping\.embed\.weight"),
        ({"mapping.mlp.l1.fc0.bias": torch.zeros(5)}, r"mapping\.mlp\.l1\.fc0\.bias .*\[5\].*\[8\]"),
    ],
)
def test_what_is_wrong_with_a_generator_is_named(change, complaint):
    state, arguments = official_generator()
    state = {key: tensor for key, tensor in {**state, **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=complaint):
        ganformer_generator(state, arguments, presets.load(overrides=SMALL).generator)


def test_a_layer_without_its_attention_is_named():
    state, arguments = official_generator()
    state = {key: tensor for key, tensor in state.items() if ".b8.conv0.transformer." not in key}
    with pytest.raises(
        CheckpointError, match=r"misses synthesis\.b8\.conv0\.transformer\.to_queries\.weight"
    ):
        ganformer_generator(state, arguments, presets.load(overrides=SMALL).generator)


def test_a_snapshot_without_an_average_is_no_checkpoint(monkeypatch, tmp_path):
    state, arguments = official_generator()
    path = tmp_path / "s.pkl"
    path.write_bytes(pickled(monkeypatch, {"G": Network(state, arguments), "G_ema": 1}))
    with pytest.raises(CheckpointError, match="no averaged generator: G, G_ema"):
        files.convert(path, presets.load(overrides=SMALL))
