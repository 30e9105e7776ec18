"""A model's sizes as Hugging Face's config.json says them, for a Llama; and for what is none.

With the lattice's rotary positions a model is no Llama: its config.json says so by a ``model_type``
of its own, so that no other program takes it for one and computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crystalline.decoder.scaling import scaling_from_hf
from crystalline.errors import ConfigError
from crystalline.rules import refuse

if TYPE_CHECKING:
    from crystalline.config import ModelConfig

# Field -> the key that Hugging Face's LlamaConfig uses for it in config.json.
HF_KEYS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "hidden": "intermediate_size",
    "seq_len": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}

OWN_TYPE = "crystalline"  # the model_type of what is no Llama

ONLY: dict[str, tuple[object, str]] = {  # key of config.json: what it must be, and why
    "model_type": ("llama", "crystalline computes the layers of Llama alone"),
    "hidden_act": ("silu", "crystalline's feed-forward part is SwiGLU"),
    "attention_bias": (False, "crystalline's layers have no biases"),
    "mlp_bias": (False, "crystalline's layers have no biases"),
    "quantization_config": (None, "crystalline reads weights that are plain numbers"),
}


def to_keys(c: ModelConfig, eot: int, bos: int) -> dict[str, Any]:
    """What ``ModelConfig.to_hf`` returns."""
    llama = c.rope == "standard"
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    own = {"architectures": ["CrystallineForCausalLM"], "model_type": OWN_TYPE, "rope": c.rope}
    return {
        **(kind if llama else own),
        **{key: getattr(c, field) for field, key in HF_KEYS.items()},
        **({"rope_scaling": c.rope_scaling.to_hf()} if c.rope_scaling else {}),
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": bos,
        "eos_token_id": eot,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def from_keys(d: Mapping[str, Any]) -> dict[str, object]:
    """Our fields out of Hugging Face's keys, refusing variants of Llama that we do not compute."""
    own = d.get("model_type") == OWN_TYPE
    for key, (only, reason) in ONLY.items():
        if d.get(key, only) != only and not (own and key == "model_type"):
            refuse(key, d[key], reason, f"a model with {only!r}")
    rope = d.get("rope_parameters")
    stretched = scaling_from_hf("rope_parameters", rope)
    if d.get("rope_scaling") is not None:
        stretched = scaling_from_hf("rope_scaling", d["rope_scaling"])
    # The defaults are those of LlamaConfig: a key left out means the same to both readers.
    optional = {
        "num_key_value_heads": d.get("num_attention_heads"),
        "rope_theta": (rope or {}).get("rope_theta", 10000.0),
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    values: dict[str, object] = {"rope_scaling": stretched}
    if own:
        values["rope"] = d.get("rope")
    for field, key in HF_KEYS.items():
        if key not in d and key not in optional:
            raise ConfigError(f"{key} is missing; a Llama config.json states it, add it")
        given = d.get(key)
        values[field] = optional[key] if given is None and key in optional else given
    return values
