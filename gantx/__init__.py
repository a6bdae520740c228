"""gantx: GANs made of transformers, trained, sampled, measured and shipped.

    model = gantx.load("runs/0001-transgan-tiny-shapes")
    images = model.sample(16)                      # uint8 [16, 3, H, W], the same every time

torch is imported by the first call, not by `import gantx`.
"""

from gantx.api import Model, evaluate, load, sample
from gantx.version import __version__

__all__ = ["Model", "__version__", "evaluate", "load", "sample"]
