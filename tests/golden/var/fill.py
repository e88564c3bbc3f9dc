"""The rule that fills every parameter of a model from its name, so that golden outputs need no stored weights.

The rule, and the outputs of the published code under it in golden.npz, are described in data/var_golden/README.md.
"""

import math
import zlib

import numpy as np
import torch

LEFT = ("attn_bias_for_masking", "lvl_1L", "zero_k_bias", "ema_vocab_hit_SV")


def filled(key, shape):
    """The values of one tensor, float32."""
    r = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    last = key.rpartition(".")[2]
    if last == "scale_mul_1H11":
        values = math.log(4) + 0.1 * r
    elif len(shape) >= 2 and last == "weight" and "emb" not in key:
        values = r / math.sqrt(math.prod(shape[1:]))
    elif "norm" in key and last == "weight":
        values = 1 + 0.1 * r
    elif last == "bias" or len(shape) == 1:
        values = 0.02 * r
    else:
        values = 0.5 * r
    return values.astype(np.float32)


def fill_(model, prefix=""):
    """Fills a model, or a part of one whose keys begin with `prefix`."""
    for key, tensor in model.state_dict().items():
        if key.rpartition(".")[2] not in LEFT:
            tensor.copy_(torch.from_numpy(filled(prefix + key, tuple(tensor.shape))))
    return model.eval()
