"""A Hugging Face Llama folder: config.json, tokenizer.json and safetensors, single or sharded."""

from __future__ import annotations

import os

from crystalline.checkpoints.modelfiles import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    read_object,
    read_tokenizer,
)
from crystalline.checkpoints.pending import Pending
from crystalline.config import ModelConfig, parameter_shapes
from crystalline.errors import CheckpointError, UsageError
from crystalline.formats.safetensors_file import SafetensorsFile
from crystalline.formats.source import Source

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"
# What older versions of transformers saved beside the weights, and follows from the configuration.
FOLLOWS = ("rotary_emb.inv_freq", "attention.bias", "masked_bias")


def read_huggingface(folder: str) -> Source:
    """The model in a folder: weights are read when they are asked for.

    Raises UsageError for what crystalline does not read, CheckpointError for a damaged file.
    """
    config_path = os.path.join(folder, CONFIG)
    said = read_object(_there(config_path))
    config = ModelConfig.from_hf(said, config_path)
    tokenizer_path = os.path.join(folder, TOKENIZER)
    if not os.path.exists(tokenizer_path) and os.path.exists(
        os.path.join(folder, "tokenizer.model")
    ):
        raise UsageError(
            f"{folder}: its tokenizer is SentencePiece (tokenizer.model), but crystalline reads "
            "byte-level BPE in a tokenizer.json, in which every text has ids; "
            "import a model with that"
        )
    about_path = os.path.join(folder, TOKENIZER_CONFIG)
    about = read_object(about_path) if os.path.exists(about_path) else {}
    tokenizer = read_tokenizer(_there(tokenizer_path), about, said, _template(folder))
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"{tokenizer_path}: has {tokenizer.vocab_size} tokens, the model in config.json knows "
            f"{config.vocab_size}; give the tokenizer that belongs to it"
        )
    return Source(config, tokenizer, _weights(folder, config), folder)


def _there(path: str) -> str:
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: the file is missing; fetch the whole folder")
    return path


def _template(folder: str) -> str | None:
    """Newer versions of transformers keep it in a file of its own."""
    path = os.path.join(folder, TEMPLATE)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _weights(folder: str, c: ModelConfig) -> dict[str, Pending]:
    places = _places(folder)
    shapes = parameter_shapes(c)
    wanted = set(shapes)
    # Tied: the output weight is the embedding, whatever a copy of it in the file says.
    known = wanted | {"lm_head.weight"}
    unknown = sorted(n for n in places if n not in known and not n.endswith(FOLLOWS))
    if unknown:
        what = "biases" if unknown[0].endswith(".bias") else "such weights"
        raise UsageError(
            f"{folder}: holds {unknown[0]}, but crystalline's layers have no {what}; "
            "import a plain Llama"
        )
    weights = {}
    for name, shape in shapes.items():
        if name not in places:
            raise CheckpointError(f"{folder}: {name} is in no file; fetch the whole folder")
        pending = places[name].pending(name)
        if pending.shape != shape:
            raise CheckpointError(
                f"{places[name].path}: {name} is {pending.shape}, config.json says {shape}; "
                "give the config.json that belongs to it"
            )
        weights[name] = pending
    return weights


def _places(folder: str) -> dict[str, SafetensorsFile]:
    """In which file each tensor lies."""
    single, index = os.path.join(folder, SINGLE), os.path.join(folder, INDEX)
    if os.path.exists(single):
        file = SafetensorsFile.open(single)
        return dict.fromkeys(file.places, file)
    if not os.path.exists(index):
        raise CheckpointError(
            f"{folder}: holds neither {SINGLE} nor {INDEX}; fetch the weights in safetensors"
        )
    listed = read_object(index).get("weight_map")
    names = listed.values() if isinstance(listed, dict) else []
    if not names or not all(isinstance(n, str) and os.path.basename(n) == n for n in names):
        raise CheckpointError(f"{index}: its weight_map names no files; fetch it again")
    files = {n: SafetensorsFile.open(_there(os.path.join(folder, n))) for n in sorted(set(names))}
    assert isinstance(listed, dict)
    for tensor, name in listed.items():
        if tensor not in files[name].places:
            raise CheckpointError(f"{files[name].path}: {tensor} is missing; fetch it again")
    return {tensor: files[name] for tensor, name in listed.items()}
