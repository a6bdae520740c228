"""gantx: GANs made of transformers, trained, sampled, measured and shipped."""

__version__ = "0.1.0"
