"""The formulas of the model and of what is left out, plainly, in NumPy's float64 and without any of our model code.

Weights are a mapping from the names of the released files to arrays. All scales are computed at once under a mask, so
nothing here is cached, shared or skipped: what the engine saves shows up as a difference.
"""

import math

import numpy as np

DENSE = -1


def arrays(model):
    """A torch model's tensors as float64 (integers as they are)."""
    return {
        name: t.detach().double().numpy() if t.is_floating_point() else t.numpy()
        for name, t in model.state_dict().items()
    }


# --- the transformer


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def normalize(x):
    return x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), 1e-12)


def levels(patch_nums):
    return np.array([scale for scale, side in enumerate(patch_nums) for _ in range(side * side)])


def first_segment(scale):
    """The first key scale that is windowed: K(q) = 2, 3, 3, 4, 5, 6, 7 newest ones for q = 3 to 9."""
    newest = {0: 0, 1: 0, 2: 0, 3: 2, 4: 3}.get(scale, scale - 2)
    return scale + 1 - newest


def visible(patch_nums, num_heads, windows=None):
    """(H, L, L) bool by a double loop over all pairs: block-causal by scale, and within the windows of each head."""
    scale_of, sizes = levels(patch_nums), [side * side for side in patch_nums]
    starts = np.cumsum([0, *sizes])
    out = np.zeros((num_heads, len(scale_of), len(scale_of)), dtype=bool)
    for i, q in enumerate(scale_of):
        for j, k in enumerate(scale_of):
            if k > q:
                continue
            widths = None if windows is None else windows[q]
            if widths is None or k < first_segment(q):
                out[:, i, j] = True
                continue
            # |i·N_k/N_q − j| < w, in whole numbers.
            distance = abs((i - starts[q]) * sizes[k] - (j - starts[k]) * sizes[q])
            for head in range(num_heads):
                w = widths[k - first_segment(q)][head]
                out[head, i, j] = w == DENSE or distance < w * sizes[q]
    return out


def embed(state, labels, inputs):
    first = state["class_emb.weight"][labels][:, None] + state["pos_start"]
    rest = inputs @ state["word_embed.weight"].T + state["word_embed.bias"]
    x = np.concatenate([first, rest], 1)
    return x + state["pos_1LC"] + state["lvl_embed.weight"][state["lvl_1L"][0]]


def modulations(state, i, labels):
    """(B, 1, 6, C): gamma1, gamma2, scale1, scale2, shift1, shift2."""
    condition = silu(state["class_emb.weight"][labels])
    width = condition.shape[-1]
    name = "shared_ada_lin.1" if "shared_ada_lin.1.weight" in state else f"blocks.{i}.ada_lin.1"
    six = (condition @ state[f"{name}.weight"].T + state[f"{name}.bias"]).reshape(-1, 1, 6, width)
    return six + state.get(f"blocks.{i}.ada_gss", 0)


def heads(x, num_heads):
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)


def qkv(state, i, x, num_heads):
    name = f"blocks.{i}.attn"
    bias = np.concatenate([state[f"{name}.q_bias"], np.zeros_like(state[f"{name}.q_bias"]), state[f"{name}.v_bias"]])
    q, k, v = (heads(t, num_heads) for t in np.split(x @ state[f"{name}.mat_qkv.weight"].T + bias, 3, -1))
    factor = state.get(f"{name}.scale_mul_1H11")
    if factor is None:
        return q * (0.25 / math.sqrt(q.shape[-1])), k, v
    return normalize(q) * np.exp(np.minimum(factor, math.log(100))), normalize(k), v


def attention_map(q, k, mask):
    return softmax(np.where(mask, q @ k.transpose(0, 1, 3, 2), -np.inf))


def attention(state, i, x, mask, num_heads, shared=None, variant=None):
    """Attention with its projection.

    With `shared`, (L,) bool, the second half of the rows takes there the first half's map or output.
    """
    q, k, v = qkv(state, i, x, num_heads)
    weights = attention_map(q, k, mask)
    half = len(x) // 2
    if shared is not None and variant == "map":
        weights[half:, :, shared] = weights[:half, :, shared]
    out = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    out = out @ state[f"blocks.{i}.attn.proj.weight"].T + state[f"blocks.{i}.attn.proj.bias"]
    if shared is not None and variant == "output":
        out[half:, shared] = out[:half, shared]
    return out


def feed_forward(state, i, x):
    name = f"blocks.{i}.ffn"
    inside = gelu_tanh(x @ state[f"{name}.fc1.weight"].T + state[f"{name}.fc1.bias"])
    return inside @ state[f"{name}.fc2.weight"].T + state[f"{name}.fc2.bias"]


def logits(state, patch_nums, num_heads, labels, inputs, *, windows=None, first_scale=None, variant=None):
    """(R, L, V) teacher-forced logits.

    `windows[layer][scale]` is None or (segments, heads) widths; with `first_scale` (a scale or None for each layer) the
    rows are images and then the same without their class, and share attention from there on.
    """
    x = embed(state, labels, inputs)
    scale_of = levels(patch_nums)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    full = visible(patch_nums, num_heads)
    for i in range(depth):
        gamma1, gamma2, scale1, scale2, shift1, shift2 = np.moveaxis(modulations(state, i, labels), 2, 0)
        mask = full if windows is None else visible(patch_nums, num_heads, windows[i])
        shared = None if first_scale is None or first_scale[i] is None else scale_of >= first_scale[i]
        normed = layer_norm(x) * (1 + scale1) + shift1
        x = x + gamma1 * attention(state, i, normed, mask, num_heads, shared, variant)
        x = x + gamma2 * feed_forward(state, i, layer_norm(x) * (1 + scale2) + shift2)
    name = "head_nm.ada_lin.1"
    two = silu(state["class_emb.weight"][labels]) @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    scale, shift = np.split(two[:, None], 2, -1)
    return (layer_norm(x) * (1 + scale) + shift) @ state["head.weight"].T + state["head.bias"]


# --- guidance and the draw


def guided(both, patch_nums, cfg):
    """(2·B, L, V) to (B, L, V): (1 + t)·cond − t·uncond with t = cfg·s/(S − 1)."""
    cond, uncond = np.split(both, 2)
    t = cfg * levels(patch_nums)[:, None] / (len(patch_nums) - 1)
    return (1 + t) * cond - t * uncond


def sampling_probabilities(row, top_k, top_p):
    """(V,) logits to (V,) probabilities: top-k, then top-p."""
    row = row.astype(np.float64)
    if top_k:
        row = np.where(row < np.sort(row)[-top_k], -np.inf, row)
    p = softmax(row)
    ascending = np.argsort(row, kind="stable")  # by logits: two of them may have one probability
    drop = np.cumsum(p[ascending]) <= 1 - top_p
    drop[-1] = False
    p[ascending[drop]] = 0
    return p / p.sum()


# --- the quantizer


def phi_table(num_scales, num_phi):
    if (num_scales, num_phi) == (10, 4):
        return [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    # An odd number of scales has an exact tie in the middle, which these very numbers in float64 break.
    ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi).tolist()
    table = []
    for s in range(num_scales):
        distances = [abs(tick - s / max(num_scales - 1, 1)) for tick in ticks]
        table.append(distances.index(min(distances)))
    return table


def area(f, side):
    """Each output pixel is the mean of the pixels that it touches."""
    size = f.shape[-1]
    out = np.empty((*f.shape[:2], side, side))
    for i in range(side):
        for j in range(side):
            rows = slice(i * size // side, -(-(i + 1) * size // side))
            columns = slice(j * size // side, -(-(j + 1) * size // side))
            out[:, :, i, j] = f[:, :, rows, columns].mean((2, 3))
    return out


def _cubic(d, a=-0.75):
    d = abs(d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic_matrix(size, side):
    """(side, size) weights along one axis; pixels beyond the edge are the edge's."""
    matrix = np.zeros((side, size))
    for i in range(side):
        centre = (i + 0.5) * size / side - 0.5
        for n in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(n, 0), size - 1)] += _cubic(centre - n)
    return matrix


def bicubic(h, side):
    matrix = bicubic_matrix(h.shape[-1], side)
    return matrix @ h @ matrix.T


def conv3x3(h, weight, bias):
    padded = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
    size = h.shape[-1]
    out = np.zeros((len(h), len(weight), size, size)) + bias[:, None, None]
    for di in range(3):
        for dj in range(3):
            out += np.einsum("oi,bihw->bohw", weight[:, :, di, dj], padded[:, :, di : di + size, dj : dj + size])
    return out


def _num_phi(state):
    return sum(name.startswith("quant_resi.") and name.endswith(".bias") for name in state)


def upsampled(state, patch_nums, tokens, scale):
    """What a scale's (B, side²) tokens add to f_hat; `state` has the quantizer's own names."""
    side = patch_nums[scale]
    h = state["embedding.weight"][tokens].transpose(0, 2, 1).reshape(len(tokens), -1, side, side)
    if scale < len(patch_nums) - 1:
        h = bicubic(h, patch_nums[-1])
    name = f"quant_resi.qresi_ls.{phi_table(len(patch_nums), _num_phi(state))[scale]}"
    return 0.5 * h + 0.5 * conv3x3(h, state[f"{name}.weight"], state[f"{name}.bias"])


def quantize(state, patch_nums, latent, commitment=0.25):
    """Tokens of each scale, f_hat after each, the loss, and how much nearer the nearest code was than the next."""
    rest, f_hat = latent.copy(), np.zeros_like(latent)
    tokens, sums, margin, loss = [], [], np.inf, 0.0
    for scale, side in enumerate(patch_nums):
        small = rest if scale == len(patch_nums) - 1 else area(rest, side)
        vectors = small.transpose(0, 2, 3, 1).reshape(-1, latent.shape[1])
        distances = ((vectors[:, None] - state["embedding.weight"][None]) ** 2).sum(-1)
        two = np.sort(distances, 1)[:, :2]
        margin = min(margin, (two[:, 1] - two[:, 0]).min())
        tokens.append(distances.argmin(1).reshape(len(latent), -1))
        added = upsampled(state, patch_nums, tokens[-1], scale)
        f_hat, rest = f_hat + added, rest - added
        sums.append(f_hat)
        loss += (1 + commitment) * ((f_hat - latent) ** 2).mean()
    return tokens, sums, loss / len(patch_nums), margin


def next_inputs(state, patch_nums, tokens):
    f_hat, inputs = 0.0, []
    for scale, side in enumerate(patch_nums[1:], start=1):
        f_hat = f_hat + upsampled(state, patch_nums, tokens[scale - 1], scale - 1)
        small = f_hat if scale == len(patch_nums) - 1 else area(f_hat, side)
        inputs.append(small.reshape(*small.shape[:2], -1).transpose(0, 2, 1))
    return np.concatenate(inputs, 1)
