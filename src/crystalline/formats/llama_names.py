"""What llama.cpp calls the weights of a Llama, and in which order it keeps rows of q and k.

Hugging Face turns element i of a head together with element i + Dh / 2, llama.cpp 2 i with 2 i + 1:
a head's rows r of its first half and r of its second half are neighbours there.
"""

from __future__ import annotations

from crystalline.checkpoints.pending import Floats
from crystalline.config import ModelConfig, parameter_shapes

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FACTORS = "rope_freqs.weight"


def gguf_names(c: ModelConfig) -> dict[str, str]:
    """Every weight's name here and in a GGUF file."""
    names = {}
    for name in parameter_shapes(c):
        if name in OUTSIDE:
            names[name] = OUTSIDE[name]
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            names[name] = f"blk.{layer}.{INSIDE[part]}.weight"
    return names


def heads_of(c: ModelConfig, name: str) -> int:
    """The heads whose rows are reordered in a weight; 0 in all but those of q and k."""
    if name.endswith("q_proj.weight"):
        return c.heads
    return c.kv_heads if name.endswith("k_proj.weight") else 0


def interleaved(w: Floats, heads: int) -> Floats:
    """Rows as llama.cpp has them, from Hugging Face's."""
    if not heads:
        return w
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def halved(w: Floats, heads: int) -> Floats:
    """Rows as Hugging Face has them, from llama.cpp's."""
    if not heads:
        return w
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
