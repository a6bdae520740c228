"""Digests over a whole safetensors file, as gantx writes them and as others might."""

import errno
import hashlib

import pytest
import torch
from helpers.flipped_bits import flips, header_size
from safetensors import SafetensorError
from safetensors.torch import save_file

from gantx.errors import DataError, MissingError
from gantx.generation.latents import read_latents
from gantx.generation.projection import save_latents
from gantx.io import sealed


def test_latents_with_a_flipped_bit_are_refused(tmp_path):
    path = tmp_path / "z.safetensors"
    save_latents(path, torch.randn(3, 8))
    whole = read_latents(path, (8,))
    for _ in flips(path, 60, header_size(path)):
        with pytest.raises(DataError):
            read_latents(path, (8,))
    assert torch.equal(read_latents(path, (8,)), whole)


@pytest.mark.parametrize("entry", ["[1]", "1", "{", '"x"', "[" * 5000, '{"latents": 3}', '{"other": "0"}'])
def test_digests_that_are_none_count_as_damage(tmp_path, entry):
    path = tmp_path / "z.safetensors"
    tensors = {"latents": torch.zeros(1, 8)}
    save_file(tensors, path, {"tensor_sha256": entry, "header_sha256": "0" * 64})
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[:size]).hexdigest().encode()
    path.write_bytes(content.replace(b"0" * 64, digest, 1))
    assert sealed.check_header(path)
    with pytest.raises(DataError, match="is damaged: its latents do not match their digest"):
        read_latents(path, (8,))


def test_a_full_disk_is_told_in_the_words_of_the_system(tmp_path, monkeypatch):
    def full(*arguments):
        raise SafetensorError(f"Error while serializing: I/O error: No space (os error {errno.ENOSPC})")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(MissingError, match=r"cannot write .*z\.safetensors: No space left on device$"):
        save_latents(tmp_path / "z.safetensors", torch.zeros(1, 8))
    assert list(tmp_path.iterdir()) == []
