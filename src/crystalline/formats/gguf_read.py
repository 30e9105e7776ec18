"""A GGUF file of the llama architecture, read as a Hugging Face Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from crystalline.checkpoints.pending import Floats, Pending
from crystalline.config import ModelConfig, parameter_shapes
from crystalline.decoder.positions import scaling_factors
from crystalline.decoder.scaling import RopeScaling
from crystalline.errors import CheckpointError, ConfigError, UsageError
from crystalline.formats.llama_names import ROPE_FACTORS, gguf_names, halved, heads_of
from crystalline.formats.package import gguf_package
from crystalline.formats.source import Source
from crystalline.formats.vocabulary import from_metadata, to_tokenizer

MAGIC = b"GGUF"
TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K",
)  # fmt: skip
NEAR = 1e-4  # by how much rope_freqs.weight may differ from Llama 3's formula


def read_gguf(path: str) -> Source:
    """The model in a GGUF file: weights are read and dequantised when they are asked for.

    Raises UsageError for what crystalline does not read, CheckpointError for a damaged file.
    """
    gguf = gguf_package()
    try:
        reader = gguf.GGUFReader(path)
        meta = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a whole GGUF file ({reason}); fetch it again"
        ) from error
    if reader.byte_order != "I":
        raise UsageError(f"{path}: its numbers are of the other byte order; convert it again")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(meta, tensors, path)
    tokenizer = to_tokenizer(from_metadata(meta, path), path)
    return Source(config, tokenizer, _weights(gguf, config, tensors, path), str(path))


def _config(meta: Mapping[str, Any], tensors: Mapping[str, Any], path: str) -> ModelConfig:
    architecture = meta.get("general.architecture")
    if architecture != "llama":
        raise UsageError(
            f"{path}: its architecture is {architecture!r}, but crystalline computes llama; "
            "import a model of that"
        )
    if meta.get("split.count", 1) > 1:
        raise UsageError(f"{path}: is one of several parts; join them with gguf-split --merge")

    def said(key: str, default: Any = None) -> Any:
        value = meta.get(f"llama.{key}", default)
        if value is None:
            raise UsageError(f"{path}: llama.{key} is missing; convert the model again")
        return value

    if said("expert_count", 0):
        raise UsageError(
            f"{path}: has {said('expert_count')} experts, but crystalline's layers have one "
            "feed-forward part; import a dense model"
        )
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path}: token_embd.weight is missing; fetch it again")
    heads, dim = said("attention.head_count"), said("embedding_length")
    try:
        config = ModelConfig(
            vocab_size=int(tensors["token_embd.weight"].shape[1]),
            dim=dim,
            layers=said("block_count"),
            heads=heads,
            kv_heads=said("attention.head_count_kv", heads),
            hidden=said("feed_forward_length"),
            seq_len=said("context_length"),
            rope_theta=_decimal(said("rope.freq_base", 10000.0)),
            norm_eps=_decimal(said("attention.layer_norm_rms_epsilon")),
            tied="output.weight" not in tensors,
        )
        for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
            if said(key, config.head_dim) != config.head_dim:
                raise ConfigError(
                    f"llama.{key} is {said(key)}, but crystalline's heads are "
                    f"embedding_length / head_count = {config.head_dim} wide; "
                    "import a model where they agree"
                )
        scaling = _scaling(meta, tensors, config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return ModelConfig(**{**vars(config), "rope_scaling": scaling})


def _decimal(value: float) -> float:
    """A float32 of the file as the number that was meant: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value)))


def _scaling(
    meta: Mapping[str, Any], tensors: Mapping[str, Any], c: ModelConfig
) -> RopeScaling | None:
    """Linear scaling stands in the metadata; of Llama 3's there are only the factors."""
    kind = meta.get("llama.rope.scaling.type", "none")
    factor = meta.get("llama.rope.scaling.factor", meta.get("llama.rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        raise ConfigError(
            f"llama.rope.scaling.type is {kind!r}, but crystalline knows linear and llama3; "
            "import a model of these"
        )
    if ROPE_FACTORS not in tensors:
        return RopeScaling("linear", _decimal(factor)) if factor not in (0.0, 1.0) else None
    factors = np.array(tensors[ROPE_FACTORS].data, np.float32).reshape(-1)
    original = meta.get("llama.rope.scaling.original_context_length", 8192)
    guess = RopeScaling("llama3", _decimal(max(1.0, float(factors.max()))), 1.0, 4.0, original)
    want = scaling_factors(c.head_dim, c.rope_theta, guess)
    if factors.shape != want.shape or np.abs(factors / want - 1).max() > NEAR:
        raise ConfigError(
            f"{ROPE_FACTORS} is not what Llama 3 models have for factor {guess.factor:g}, and "
            "config.json has no word for other ones; import the Hugging Face folder"
        )
    return guess


def _weights(
    gguf: Any, c: ModelConfig, tensors: Mapping[str, Any], path: str
) -> dict[str, Pending]:
    names, weights = gguf_names(c), {}
    unknown = sorted(tensors.keys() - set(names.values()) - {ROPE_FACTORS, "output.weight"})
    if unknown:
        what = "biases" if unknown[0].endswith(".bias") else "these weights"
        raise UsageError(
            f"{path}: holds {unknown[0]}, but crystalline's layers have no {what}; "
            "import a plain Llama"
        )
    for name, shape in parameter_shapes(c).items():
        tensor = tensors.get(names[name])
        if tensor is None:
            raise CheckpointError(f"{path}: {names[name]} is missing; fetch it again")
        found = tuple(int(n) for n in reversed(tensor.shape))
        if found != shape:
            raise CheckpointError(
                f"{path}: {names[name]} is {found}, its metadata say {shape}; convert it again"
            )
        if tensor.tensor_type.name not in TYPES:
            raise UsageError(
                f"{path}: {names[name]} is {tensor.tensor_type.name}, but crystalline reads "
                f"{', '.join(TYPES)}; import another quantisation"
            )
        weights[name] = _pending(gguf, tensor, shape, heads_of(c, name))
    return weights


def _pending(gguf: Any, tensor: Any, shape: tuple[int, ...], heads: int) -> Pending:
    def make() -> Floats:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        return halved(np.asarray(values, np.float32), heads)

    return Pending(shape, make)
