"""A network with its optimiser, in flat storage: one buffer each for weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from gantx.config.schema import AdamConfig
from gantx.runtime.flat import flat_zeros, flatten_buffers, flatten_parameters, views_of

MOMENTS = ("exp_avg", "exp_avg_sq")


# Covariant: an optimised generator is an optimised network. Nothing replaces `network` once it is built.
Network = TypeVar("Network", bound=nn.Module, covariant=True)


class OptimizedNetwork(Generic[Network]):
    """A network, its optimiser and its gradient.

    Parameters, gradients, moments and saved buffers are views of one buffer each, so that clipping, the
    optimiser's step, averaging and checking are one operation each. All of them stay in place, so a step can
    be captured and replayed.

    Args:
        network: float32, on its final device.
        settings: its optimiser.

    Attributes:
        parameters: of the network, in their order; the `grad` of each is a view of `gradient`.
        weights: all parameters [n]; they are views of it.
        gradient: of all parameters [n].
        buffers: all saved buffers of the network; they are views of it.
        lr: learning rate before the schedule.
    """

    def __init__(self, network: Network, settings: AdamConfig) -> None:
        self.network = network
        self.settings = settings
        self.weights = flatten_parameters(network)
        self.buffers = flatten_buffers(network)
        self.parameters = list(network.parameters())
        device = self.weights.device
        self.gradient, self._gradients = flat_zeros([p.shape for p in self.parameters], device)
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = gradient
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        # Lazy steps are additional steps (StyleGAN2, appendix B): k/(k + 1) of the rate and of the decay in
        # each step keep both the same per iteration.
        ratio = 1.0 if settings.lazy_every is None else settings.lazy_every / (settings.lazy_every + 1)
        self.lr = settings.lr * ratio
        fused = device.type in ("cpu", "cuda")
        # A tensor on the device: the schedule writes it, and a captured step reads it.
        self._rate = torch.full((), self.lr, device=device) if fused else None
        self._all = nn.Parameter(self.weights)
        self._all.grad = self.gradient
        self.optimizer = kind(
            [self._all],
            lr=self.lr if self._rate is None else self._rate,
            betas=(settings.betas[0] ** ratio, settings.betas[1] ** ratio),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=fused,
            capturable=device.type == "cuda",
        )
        # Steps before the first capture are intended: no warning from PyTorch.
        self.optimizer._warned_capturable_if_run_uncaptured = True
        self.moments = {name: torch.zeros_like(self.weights) for name in MOMENTS}
        self.steps = torch.zeros((), device=device if fused else "cpu")
        self.optimizer.state[self._all] = {"step": self.steps, **self.moments}
        self._factor = 1.0
        self._trainable: bool | None = None

    def set_learning_rate(self, factor: float) -> None:
        """Scale the configured learning rate by the schedule's `factor`."""
        if factor == self._factor:
            return
        self._factor = factor
        if self._rate is not None:
            self._rate.fill_(self.lr * factor)
        else:
            self.optimizer.param_groups[0]["lr"] = self.lr * factor

    def train_parameters(self, trained: bool) -> None:
        """Let parameters require gradients, or freeze them: gradients then reach the inputs only."""
        if trained != self._trainable:
            self._trainable = trained
            self.network.requires_grad_(trained)

    def collect(self, gradients: Sequence[Tensor | None], *, add: bool) -> None:
        """Write gradients into `gradient`, or add them to it.

        Args:
            gradients: one for each of `parameters`; None for zero.
            add: add to the present values.
        """
        nonzero = [(view, g) for view, g in zip(self._gradients, gradients, strict=True) if g is not None]
        if not add and len(nonzero) < len(self._gradients):
            self.gradient.zero_()
        # A single tensor of another layout makes torch._foreach_* handle all of them one by one.
        same_layout = [pair for pair in nonzero if pair[0].stride() == pair[1].stride()]
        others = [pair for pair in nonzero if pair[0].stride() != pair[1].stride()]
        for pairs in (same_layout, *([pair] for pair in others)):
            views, values = [view for view, _ in pairs], [g for _, g in pairs]
            if views and add:
                torch._foreach_add_(views, values)
            elif views:
                torch._foreach_copy_(views, values)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Clip the gradient, update the parameters, return the norm before clipping (0-d, on the device)."""
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        if self.settings.clip_norm is not None:
            self.gradient.mul_((self.settings.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        return norm

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimiser's state as `<parameter>.<moment>`, by the names of the parameters."""
        names = [name for name, _ in self.network.named_parameters()]
        state = {f"{name}.step": self.steps.clone() for name in names}  # a file shares no tensors
        for moment, flat in self.moments.items():
            views = views_of(flat, self.parameters)
            state |= {f"{name}.{moment}": view for name, view in zip(names, views, strict=True)}
        return state

    @torch.no_grad()
    def load_optimizer_state(self, stored: dict[str, Tensor]) -> None:
        """Restore what `optimizer_state` returned; parameters without an entry keep their state."""
        for name, own in self.optimizer_state().items():
            if name in stored:
                target = self.steps if name.endswith(".step") else own
                target.copy_(stored[name])
