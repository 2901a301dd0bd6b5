"""Deterministic weights for parity tests: every tensor is a function of its name and shape alone.

    fill(state_dict, salt="") -> the same dict, filled in place

Each tensor draws from its own generator, numpy.random.default_rng(crc32(salt + name)), so a model
that holds only some of the towers gets the same values as one that holds them all. Nothing is left at
a neutral value (zero bias, unit LayerNorm): a tensor that is ignored or misplaced shows in the output.
Constants (log_logit_scale buffers, the text mask) keep the value that the model gave them.
"""

import zlib

import numpy as np


def fill(state_dict, salt=""):
    """Fill `state_dict` (name -> float32 tensor) in place and return it."""
    for name, tensor in state_dict.items():
        if name.endswith(("log_logit_scale", ".mask")):
            continue
        rng = np.random.default_rng(zlib.crc32((salt + name).encode()))
        x = tensor.numpy()  # filled where it lies
        rng.standard_normal(dtype=np.float32, out=x)
        if tensor.ndim == 1:
            is_norm_weight = name.endswith("weight")  # every 1-d weight here is a LayerNorm's
            x *= 0.2 if is_norm_weight else 0.1
            x += 1.0 if is_norm_weight else 0.0
        elif name.endswith(("pos_embed", "cls_token", "token_embedding.weight", "bias_k", "bias_v")):
            x *= 0.5
        else:
            x *= float(np.prod(tensor.shape[1:])) ** -0.5  # fan-in
    return state_dict
