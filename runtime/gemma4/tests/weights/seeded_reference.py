#!/usr/bin/env python3
"""The numbers of the seeded model once more, independently: prints the digest that tests/weights/seeded.rs expects.

    python seeded_reference.py        # needs numpy; some seconds

Follows the documentation of the module `seeded`. The digest is the SHA-256 over all tensors in the order of their names, each
as its name, a line feed and its float32 numbers, little-endian.
"""

import hashlib
import struct

import numpy as np

SEED = 0
LABEL = b"gemma4 seeded weights 1\n"
F = np.float32

H, V, L, P, HEADS, I = 64, 1024, 10, 16, 4, 128


def shapes():
    base = "model.language_model."
    found = {
        "embed_tokens.weight": (V, H), "norm.weight": (H,), "embed_tokens_per_layer.weight": (V, L * P),
        "per_layer_model_projection.weight": (L * P, H), "per_layer_projection_norm.weight": (P,),
    }
    for i in range(L):
        dim, width = (32 if i % 5 == 4 else 16), (2 * I if i >= L // 2 else I)
        layer = {
            "self_attn.q_proj.weight": (HEADS * dim, H), "self_attn.k_proj.weight": (dim, H),
            "self_attn.v_proj.weight": (dim, H), "self_attn.o_proj.weight": (H, HEADS * dim),
            "self_attn.q_norm.weight": (dim,), "self_attn.k_norm.weight": (dim,),
            "mlp.gate_proj.weight": (width, H), "mlp.up_proj.weight": (width, H), "mlp.down_proj.weight": (H, width),
            "per_layer_input_gate.weight": (P, H), "per_layer_projection.weight": (H, P),
            "post_per_layer_input_norm.weight": (H,), "layer_scalar": (1,),
        }
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            layer[f"{name}_layernorm.weight"] = (H,)
        found |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return {base + name: shape for name, shape in found.items()}


def chacha8(key, words):
    """The first `words` words of the key stream: 64-bit block counter from 0, 64-bit stream number 0, after D. J. Bernstein."""
    blocks = -(-words // 16)
    start = np.zeros((16, blocks), dtype=np.uint32)
    start[:4] = np.frombuffer(b"expand 32-byte k", dtype="<u4")[:, None]
    start[4:12] = np.frombuffer(key, dtype="<u4")[:, None]
    start[12] = np.arange(blocks)
    x = start.copy()

    def quarter(a, b, c, d):
        for into, other, mixed, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[into] += x[other]
            x[mixed] ^= x[into]
            x[mixed] = (x[mixed] << np.uint32(turn)) | (x[mixed] >> np.uint32(32 - turn))

    for _ in range(4):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for diagonal in range(4):
            quarter(diagonal, 4 + (diagonal + 1) % 4, 8 + (diagonal + 2) % 4, 12 + (diagonal + 3) % 4)
    return (x + start).T.reshape(-1)[:words]


def center_and_reach(name, shape):
    unit = np.sqrt(F(3) / F(shape[-1]))
    leaf = name.removeprefix("model.language_model.").split(".", 2)[-1] if ".layers." in name else name.split(".", 2)[-1]
    if leaf == "embed_tokens.weight":
        return F(0), F(2) * unit
    if leaf == "embed_tokens_per_layer.weight":
        return F(0), F(0.5)
    if leaf == "layer_scalar":
        return F(0.85), F(0.25)
    if leaf.endswith(("q_norm.weight", "k_norm.weight")):
        return F(0.4), F(0.2)
    if leaf.startswith("post_"):
        return F(0.75), F(0.25)
    return (F(1), F(0.5)) if len(shape) == 1 else (F(0), unit)


def to_bfloat16_and_back(x):
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(F)


def draw(name, shape):
    key = hashlib.sha256(LABEL + struct.pack("<Q", SEED) + name.encode()).digest()
    words = chacha8(key, int(np.prod(shape)))
    unit = ((words & np.uint32(0xFFFF)).astype(F) - F(32767.5)) / F(32768)
    center, reach = center_and_reach(name, shape)
    x = center + reach * unit
    if name == "model.language_model.norm.weight":
        x = np.where((words >> np.uint32(16)) & np.uint32(1) == 1, -x, x)
    return to_bfloat16_and_back(x.astype(F))


def main():
    digest = hashlib.sha256()
    for name, shape in sorted(shapes().items()):
        digest.update(name.encode() + b"\n" + draw(name, shape).astype("<f4").tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
