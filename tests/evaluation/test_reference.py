"""Reference statistics: measured once, found again, carried elsewhere, and never mixed up."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.flipped_bits import COUNTS, flips, header_size
from safetensors.torch import save_file

from gantx.data.prepare import Prepared
from gantx.errors import DataError, MissingError, UsageError
from gantx.evaluation import reference
from gantx.evaluation.features import open_features
from gantx.evaluation.protocols import named
from gantx.io.cache import cache_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    return open_features("random", resize="clean", weights=None, device=CPU, allow_unverified=False)


def reals(count=23, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), np.uint8)
    return Prepared(pixels, None, (), "fingerprint", f"digest-{seed}-{count}", "reals", ())


def statistics(prepared, network, protocol="clean-50k", seen=None, **options):
    stamp = reference.describe(prepared, network, named(protocol), split="train", mirrored=False)
    return reference.reference_for(
        prepared,
        network,
        {**stamp, **options},
        device=CPU,
        progress=lambda done, total: seen.append((done, total)) if seen is not None else None,
    )


def test_moments_and_features_are_those_of_the_images(network):
    prepared, seen = reals(), []
    found, cached = statistics(prepared, network, seen=seen)
    features = network(torch.from_numpy(prepared.images)).features
    assert not cached
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.mean, features.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance, features.double().T.cov(), rtol=1e-5, atol=1e-6)
    by_n = found.covariance_by(0)
    torch.testing.assert_close(by_n, features.double().T.cov(correction=0), rtol=1e-5, atol=1e-6)
    assert seen[-1] == (23, 23)


def test_of_images_that_are_not_square_only_their_rows_are_seen(network):
    prepared = reals()
    stamp, of_squares = (
        reference.describe(prepared, network, named("clean-50k"), split="train", mirrored=False, ratio=ratio)
        for ratio in (0.5, 1.0)
    )
    assert stamp == {**of_squares, "ratio": 0.5}
    assert "ratio" not in of_squares  # the hashes of earlier scores stay what they are
    found = reference.measure(prepared, network, stamp, device=CPU, progress=lambda done, total: None)
    rows = torch.from_numpy(prepared.images[:, :, 2:6])
    torch.testing.assert_close(found.features, network(rows).features)
    with pytest.raises(UsageError, match=r"another ratio \(0\.5, here 1\.0\)"):
        reference.check(found, network, {"ratio": 1.0}, Path("old.safetensors"))
    squares = reference.measure(prepared, network, of_squares, device=CPU, progress=lambda done, total: None)
    with pytest.raises(UsageError, match=r"another ratio \(1\.0, here 0\.5\)"):
        reference.check(squares, network, {"ratio": 0.5}, Path("old.safetensors"))


def test_the_cache_is_used_for_the_same_pixels_network_and_protocol_only(network):
    first, _ = statistics(reals(), network)
    again, cached = statistics(reals(), network)
    assert cached
    assert torch.equal(again.features, first.features)
    assert again.stamp == first.stamp
    assert not statistics(reals(seed=1), network)[1]
    assert not statistics(reals(), network, weights_sha256="other")[1]
    assert not statistics(reals(), network, resize="legacy-pytorch")[1]


def test_a_damaged_cache_is_made_again(network, monkeypatch, tmp_path):
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path))
    whole, _ = statistics(reals(), network)
    (path,) = (tmp_path / "reference").iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    again, cached = statistics(reals(), network)
    assert not cached
    assert torch.equal(again.features, whole.features)


def test_some_of_the_images_mirrored_at_random(network):
    prepared = reals(200)
    found, _ = statistics(prepared, network, n_ref=50, mirror=True)
    straight = network(torch.from_numpy(prepared.images)).features
    mirrored = network(torch.from_numpy(prepared.images[..., ::-1].copy())).features
    assert found.count == len(found.features) == 50
    closest = torch.cdist(found.features, torch.cat([straight, mirrored])).min(1)
    assert closest.values.max() < 1e-3 * straight.norm(dim=1).mean()
    flipped = closest.indices >= 200
    assert 10 < flipped.sum() < 40
    assert len(set((closest.indices % 200).tolist())) == 50
    assert torch.equal(statistics(prepared, network, n_ref=50, mirror=True)[0].features, found.features)


def test_few_features_of_many_images(network, monkeypatch):
    monkeypatch.setattr(reference, "KEPT", 10)
    found, _ = statistics(reals(), network)
    assert found.count == 23
    assert len(found.features) == 10
    every = network(torch.from_numpy(reals().images)).features
    torch.testing.assert_close(found.mean, every.double().mean(0), rtol=1e-6, atol=1e-6)


def test_a_file_comes_back_and_fits_only_its_network(network, tmp_path):
    found, _ = statistics(reals(), network)
    path = tmp_path / "x.safetensors"
    reference.write(path, found)
    read = reference.read(path)
    assert torch.equal(read.covariance, found.covariance)
    assert (read.count, read.stamp) == (found.count, found.stamp)
    reference.check(read, network, {}, path)
    for field, value in {"resolution": 16, "split": "test", "mirror": True}.items():
        with pytest.raises(UsageError, match=f"another {field}"):
            reference.check(read, network, {field: value}, path)
    read.stamp["resize"] = "legacy-pytorch"
    with pytest.raises(UsageError, match="another resize"):
        reference.check(read, network, {}, path)


def test_statistics_of_other_tools(network, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, mu=np.zeros(5), sigma=-np.eye(5))
    with pytest.raises(DataError, match="none may be negative"):
        reference.read(path)
    np.savez(path, mu=np.zeros(5, np.float32), sigma=np.eye(5))
    read = reference.read(path)
    assert read.covariance.dtype == torch.float64
    assert read.features is None
    assert read.covariance_by(0) is read.covariance  # how many images there were is not known
    with pytest.raises(UsageError, match="5 features"):
        reference.check(read, network, {}, path)


def test_files_that_are_no_statistics(tmp_path):
    with pytest.raises(MissingError, match="gantx stats"):
        reference.read(tmp_path / "absent.safetensors")
    save_file({"mean": torch.zeros(3)}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", mu=np.zeros(5))
    np.savez(tmp_path / "c.npz", mu=np.zeros(5), sigma=np.eye(4))
    np.savez(tmp_path / "d.npz", mu=np.array([print], dtype=object), sigma=np.eye(4))
    (tmp_path / "e.safetensors").write_bytes(b"nothing")
    for name in ("a.safetensors", "b.npz", "c.npz", "d.npz", "e.safetensors"):
        with pytest.raises(DataError, match=name):
            reference.read(tmp_path / name)


def same(one, other):
    return (
        (one.count, one.stamp) == (other.count, other.stamp)
        and torch.equal(one.mean, other.mean)
        and torch.equal(one.covariance, other.covariance)
        and (one.features is None) == (other.features is None)
        and (one.features is None or torch.equal(one.features, other.features))
    )


def small():
    features = torch.arange(12.0).reshape(4, 3) ** 2
    return reference.Reference(4, features.double().mean(0), features.double().T.cov(), features, {"a": "b"})


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["s.safetensors", "s.npz"])
def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path, name, count):
    path = tmp_path / name
    made = small()
    if path.suffix == ".npz":
        np.savez(path, mu=made.mean.numpy(), sigma=made.covariance.numpy())
    else:
        reference.write(path, made)
    whole, found = reference.read(path), 0
    for place in flips(path, count, header_size(path) if path.suffix != ".npz" else 0):
        try:
            read = reference.read(path)
        except DataError:
            found += 1
            continue
        assert whole.count is None, place
        assert torch.equal(read.mean, whole.mean), place
        assert torch.equal(read.covariance, whole.covariance), place
    assert found == count or path.suffix == ".npz"  # dates of a zip, for example, mean nothing


def test_statistics_without_digests_are_read_and_marked(tmp_path):
    path, made = tmp_path / "s.safetensors", small()
    reference.write(path, made)
    assert reference.read(path).sealed
    assert same(reference.read(path), made)
    metadata = {"format": reference.FORMAT, "count": "4", "stamp": "{}"}
    save_file({"mean": made.mean, "covariance": made.covariance}, path, metadata)
    assert not reference.read(path).sealed
    save_file({"mean": made.mean, "covariance": made.covariance}, path, {**metadata, "count": "1"})
    with pytest.raises(DataError, match="statistics of 1 images"):
        reference.read(path)


def test_damaged_cached_statistics_are_measured_again_and_that_is_said(network):
    prepared, lines = reals(seed=5), []
    stamp = reference.describe(prepared, network, named("clean-50k"), split="train", mirrored=False)

    def found():
        how = {"device": CPU, "progress": lambda done, total: None, "log": lines.append}
        return reference.reference_for(prepared, network, stamp, **how)

    first, _ = found()
    (path,) = [p for p in (cache_folder() / "reference").iterdir() if reference.read(p).stamp == stamp]
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 64
    path.write_bytes(raw)
    again, cached = found()
    assert not cached
    assert same(first, again)
    assert lines == [f"reference: the cached statistics {path} are damaged, so they are measured again"]
    assert found()[1]
