"""GANformer (Hudson and Zitnick, arXiv 2103.01209): bipartite attention between an image and its latents.

Notable in it:
- z is m local latents and a global one; the global w modulates the convolutions of a StyleGAN2, the local
  ones meet the image in attention, between convolution and activation of most layers
- every token of the image divides its attention among the m latents: cost is linear in the number of tokens
- simplex: a token compares itself with keys of the latents. k-means: with centroids, which are learned, and
  may be refined by the tokens that chose them. duplex, our reading of the paper: refined centroids, and
  latents that look back at the image after every layer. Released checkpoints are k-means without refinement
- what is read from the latents normally scales the normalised features and adds nothing
- queries, keys, values and modulation are linear, so their products are formed on the side of the m latents
  and the n tokens meet one narrow matrix; position codes never carry the batch
- attention maps are by-products, returned only on request
- features and products are of the compute type; latents, scores, attention, gates and statistics are float32
- a discriminator with latents of its own, `aggregators`, that read the image at every resolution

Sizes, order of operations and initialisation follow the released code. Biases of keys are left out: they
raise all scores of a token alike, which the softmax takes back.
"""

from gantx.models.ganformer.discriminator import Discriminator
from gantx.models.ganformer.generator import Generator

__all__ = ["Discriminator", "Generator"]
