"""In which types a network computes, read off its operations; and how far bf16 turns its gradients."""

import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gantx.runtime.precision import set_compute_dtype

aten = torch.ops.aten
PRODUCTS = {
    aten.mm,
    aten.bmm,
    aten.addmm,
    aten.baddbmm,
    aten.mv,
    aten.addmv,
    aten.dot,
    aten.convolution,
    aten.convolution_backward,
}
CASTS = {aten._to_copy, aten.copy_}


class ComputedTypes(TorchDispatchMode):
    """Watches operations on floating-point tensors, those of derivatives of any order among them.

    Attributes:
        products: (operation, types, shapes) of every matrix product, convolution or attention.
        mixed: names of all operations, casts aside, whose operands differ in type; numbers in tensors (0-d)
            count only in products.
    """

    def __init__(self):
        super().__init__()
        self.products = []
        self.mixed = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        packet = operation.overloadpacket
        product = packet in PRODUCTS or "scaled_dot_product" in str(packet)
        operands = [
            leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and (product or leaf.dim())
        ]
        kinds = {operand.dtype for operand in operands}
        if product:
            shapes = [tuple(operand.shape) for operand in operands]
            self.products.append((str(packet), kinds, shapes))
        elif len(kinds) > 1 and packet not in CASTS:
            self.mixed.add(str(packet))
        return results

    def other_than(self, dtype):
        """Products that are not of this type alone."""
        return [product for product in self.products if product[1] != {dtype}]


def in_bf16(network):
    """A copy that multiplies in bf16."""
    copied = copy.deepcopy(network)
    set_compute_dtype(copied, torch.bfloat16)
    return copied


def gradient_of(network, loss):
    """The gradient of `loss(network)` by all parameters, as one vector."""
    gradients = torch.autograd.grad(loss(network), list(network.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def agreement(network, loss):
    """Cosine between the gradients of a loss in float32 and in bf16."""
    exact, rounded = gradient_of(network, loss), gradient_of(in_bf16(network), loss)
    assert exact.dtype == rounded.dtype == torch.float32
    return torch.cosine_similarity(exact, rounded, dim=0).item()
