"""gantx: GANs made of transformers, trained, sampled, measured and shipped.

    model = gantx.load("runs/0001-transgan-tiny-shapes")
    images = model.sample(16)                      # uint8 [16, 3, H, W], the same every time

Nothing is imported before it is used: `import gantx` is instant, and torch is imported by the first call.
"""

from __future__ import annotations

from gantx.version import __version__

TYPE_CHECKING = False  # as in typing, whose import would take most of the time
if TYPE_CHECKING:
    from typing import Any

    from gantx.api import Model, evaluate, load, sample

__all__ = ["Model", "__version__", "evaluate", "load", "sample"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gantx' has no attribute '{name}'")
    from gantx import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
