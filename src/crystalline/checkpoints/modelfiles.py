"""The small files of a model's folder, as Hugging Face has them: made here, and read again."""

from __future__ import annotations

import json
from typing import Any

from crystalline.config import ModelConfig
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import CheckpointError

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

REMEDY = "restore it from a copy, or train again"


def to_json(value: Any) -> bytes:
    """JSON as every file of a folder has it."""
    return (json.dumps(value, indent=2) + "\n").encode()


def small_files(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, bytes]:
    """All files of the model but its weights, by name."""
    eot, bos, data = tokenizer.eot, tokenizer.bos, tokenizer.to_json()
    names = {t["id"]: t["content"] for t in json.loads(data)["added_tokens"]}
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[bos],
        "eos_token": names[eot],
        "model_max_length": config.seq_len,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.chat_template is not None:
        said["chat_template"] = tokenizer.chat_template
    return {
        CONFIG: to_json(config.to_hf(eot, bos)),
        # Without a pad token, transformers warns at every generation.
        GENERATION: to_json({"bos_token_id": bos, "eos_token_id": eot, "pad_token_id": eot}),
        TOKENIZER: data,
        TOKENIZER_CONFIG: to_json(said),
    }


def read_object(path: str) -> dict[str, Any]:
    """A file that holds one JSON object.  CheckpointError for anything else."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); {REMEDY}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object; {REMEDY}")
    return value


def read_tokenizer(
    path: str, said: dict[str, Any], config: dict[str, Any], chat_template: str | None = None
) -> Tokenizer:
    """The tokenizer of a folder: its tokenizer.json at ``path``, with what its
    tokenizer_config.json (``said``) and config.json say."""
    with open(path, "rb") as file:
        data = file.read()
    template = said.get("chat_template", chat_template)
    return Tokenizer.from_json(
        data, path, _id(config.get("eos_token_id")), _id(config.get("bos_token_id")),
        template if isinstance(template, str) else None,
    )  # fmt: skip


def _id(value: object) -> int | None:
    """A token id of a config.json; of several that end a text, the first."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) and not isinstance(first, bool) else None
