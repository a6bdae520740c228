"""Snapshots as GANformer's PyTorch code pickles them, from a state dict and the arguments of a network."""

import io
import pickle
import sys
import types

import torch

BUFFERS = ("noise_const", "grid_pos", "resample_kernel", "w_avg")


def reconstruct(described):
    """Stands for the official function of this place, which would run the source text of the file."""
    raise AssertionError("the file was opened by running its code")


reconstruct.__module__ = "torch_utils.persistence"
reconstruct.__qualname__ = "_reconstruct_persistent_obj"
EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
TensorFlowNetwork = type("Network", (), {"__module__": "dnnlib.tflib.network"})


class Network:
    """Pickles like a network of the official code."""

    def __init__(self, state, arguments):
        self.attributes = {"_init_kwargs": arguments, "_parameters": {}, "_buffers": {}, "_modules": {}}
        children = {}
        for key, tensor in state.items():
            head, dot, rest = key.partition(".")
            if dot:
                children.setdefault(head, {})[rest] = tensor
            elif head in BUFFERS:
                self.attributes["_buffers"][head] = tensor
            else:
                self.attributes["_parameters"][head] = torch.nn.Parameter(tensor)
        self.attributes["_modules"] = {name: Network(inside, {}) for name, inside in children.items()}

    def __reduce__(self):
        described = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": "Network"}
        return reconstruct, ({**described, "state": self.attributes},)


def pickled(monkeypatch, content):
    """Pickle `content`, while the modules of the official project seem to be there."""
    for thing in (reconstruct, EasyDict, TensorFlowNetwork):
        module = types.SimpleNamespace(**{thing.__qualname__: thing})
        monkeypatch.setitem(sys.modules, thing.__module__, module)
        monkeypatch.setitem(sys.modules, thing.__module__.partition(".")[0], module)
    written = io.BytesIO()
    pickle.dump(content, written, protocol=4)
    return written.getvalue()
