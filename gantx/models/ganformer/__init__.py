"""GANformer (Hudson and Zitnick, arXiv 2103.01209): bipartite attention between an image and its latents.

Notable in it:
- z is m local latents and a global one; the global w modulates the convolutions of a StyleGAN2, the local
  ones are attended to by the image, between convolution and activation of most layers
- every token of the image attends to the m latents: the cost is linear in the number of tokens
- simplex: tokens are compared with keys of the latents. k-means: with centroids, which are learned, and may
  be refined by the tokens assigned to them. duplex, our reading of the paper: refined centroids, and
  latents that attend to the image after every layer. Released checkpoints are k-means without refinement
- what is read from the latents normally scales the normalised features and adds nothing
- queries, keys, values and modulation are linear, so their products are formed for the m latents and
  the n tokens are multiplied with one narrow matrix; position codes have no batch axis
- attention maps are by-products, returned only on request
- features and products are of the compute type; latents, scores, attention, gates and statistics are float32
- a discriminator with latents of its own, `aggregators`, that read the image at every resolution

Sizes, order of operations and initialisation follow the released code. Biases of keys are left out: they
would add the same to all scores of a token, which softmax ignores.
"""

from gantx.models.ganformer.discriminator import Discriminator
from gantx.models.ganformer.generator import Generator

__all__ = ["Discriminator", "Generator"]
