"""ViTGAN (Lee et al., arXiv 2107.04589, version 1): vision transformers as generator and discriminator.

Notable in it:
- the latent enters the generator through its normalisations alone: self-modulated LayerNorm, driven by a
  mapping network; the token grid itself is a sine of the coordinates, the same for all images
- an implicit neural decoder computes the patch of every token: a small network of the pixel's coordinates,
  modulated by the token; input and output channels are scaled, so no token ever has a weight of its own
- the discriminator attends by distance, softmax(−‖q − k‖²/√d) with keys tied to queries, which bounds how
  fast its output can change; an exact identity makes an ordinary inner product of it
- improved spectral normalisation keeps every weight matrix of the discriminator at its initial norm
- patches overlap, so that the discriminator cannot memorise the patch grid
- all weights are equalised: stored with unit variance, scaled when used

Where version 1 of the paper is silent, and for every option named `released`, the authors' released
generator decides. Their discriminator was never released.
"""

from gantx.models.vitgan.discriminator import Discriminator
from gantx.models.vitgan.generator import Generator

__all__ = ["Discriminator", "Generator"]
