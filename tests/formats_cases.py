"""Small models as others write them: Hugging Face folders, GGUF files of every type."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from conftest import prose
from gguf.quants import dequantize, quantize

from crystalline.config import ModelConfig, parameter_shapes
from crystalline.data.tokenizer import Tokenizer

TEXT = prose(600) + "def f(x):\n    return {'a': [1, 22, 333]}\n" * 5
TOKENIZER = Tokenizer.train([TEXT], 300)
# No multiple of a vector or a tile; more rows of the embedding than tokens.
TINY = ModelConfig(311, 40, 2, 4, 2, 52, 24)
# The blocks of K-quants have 256 elements.
WIDE = ModelConfig(300, 256, 1, 4, 2, 256, 24, tied=False)

MATRICES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
# Where a block of a K-quant has its 16-bit floats; the package does not write these types.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def random_weights(c: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights with which no logit is near another."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.normal(0, 0.3, shape) if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        ).astype(np.float32)
        for name, shape in parameter_shapes(c).items()
    }


def gguf_name(name: str) -> str:
    """llama.cpp's name of a weight."""
    outside = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm",
               "lm_head.weight": "output"}  # fmt: skip
    if name in outside:
        return outside[name] + ".weight"
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{MATRICES[part]}.weight"


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in llama.cpp's order, one by one as its converter describes it."""
    width = len(rows) // heads
    order = [
        head * width + half * (width // 2) + pair
        for head in range(heads) for pair in range(width // 2) for half in (0, 1)
    ]  # fmt: skip
    return rows[order]


def raw_rows(w: np.ndarray, kind: str) -> np.ndarray:
    """A matrix as a GGUF file keeps its rows."""
    quant = gguf.GGMLQuantizationType[kind]
    if kind in WRITTEN:
        return quantize(w, quant)
    block, size = gguf.GGML_QUANT_SIZES[quant]
    rng = np.random.default_rng(w.shape[0])
    blocks = rng.integers(0, 256, (w.shape[0], w.shape[1] // block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = rng.uniform(0.001, 0.002, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(w.shape[0], -1)


def metadata(writer: gguf.GGUFWriter, c: ModelConfig, tokenizer: Tokenizer, pre: str) -> None:
    """What llama.cpp's converter says of such a model."""
    described = json.loads(tokenizer.to_json())
    tokens = [f"[PAD{i}]" for i in range(c.vocab_size)]
    types = [5] * c.vocab_size
    for token, id in described["model"]["vocab"].items():
        tokens[id], types[id] = token, 1
    for added in described["added_tokens"]:
        types[added["id"]] = 3
    writer.add_context_length(c.seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(m) for m in described["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eot)
    writer.add_bos_token_id(tokenizer.eot)


def write_gguf(
    path: Path, c: ModelConfig, kind: str = "F32", change: Any = None, pre: str = "gpt-2",
    architecture: str = "llama", skip: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:  # fmt: skip
    """A GGUF file by its own package; returns the weights that a reader should find.

    ``change(writer)`` may add and overwrite entries; tensors named in ``skip`` are left out.
    """
    writer = gguf.GGUFWriter(str(path), architecture)
    metadata(writer, c, TOKENIZER, pre)
    if change is not None:
        change(writer)
    want = {}
    for name, w in random_weights(c).items():
        heads = c.heads if ".q_proj." in name else c.kv_heads if ".k_proj." in name else 0
        quant = gguf.GGMLQuantizationType[kind if w.ndim > 1 else "F32"]
        raw = raw_rows(w, kind) if w.ndim > 1 else w
        want[name] = dequantize(raw, quant).reshape(w.shape)
        if gguf_name(name) not in skip:
            rows = permuted(raw, heads) if heads else raw
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(rows), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return want


def replaced(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Another value for an entry; None takes it out."""
    entries = writer.kv_data[0]
    if value is None:
        del entries[key]
    else:
        entries[key] = dataclasses.replace(entries[key], value=value)
