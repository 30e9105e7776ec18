"""A tokenizer as a GGUF file's metadata, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models

from crystalline.data.splitting import KNOWN, SAME, kind_of, pre_tokenizer
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import UsageError
from crystalline.rules import nearest_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # llama.cpp's token types
WHOLE_WORDS = ("llama-bpe",)  # kinds that take a word that is a token as it is, without merges


@dataclass(frozen=True)
class Vocabulary:
    """What tokenizer.ggml.* say of a byte-level BPE; ids are places in ``tokens``."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    eos: int
    bos: int
    add_bos: bool
    chat_template: str | None


def from_metadata(meta: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary in a file's metadata.  UsageError for kinds that are not read."""

    def said(key: str, default: Any = None) -> Any:
        return meta.get(f"tokenizer.ggml.{key}", default)

    model, pre = said("model"), said("pre", "default")
    if model != "gpt2":
        kind = "SentencePiece" if model == "llama" else repr(model)
        raise UsageError(
            f"{where}: its tokenizer is {kind}, but crystalline reads byte-level BPE (gpt2), "
            "in which every text has ids; import a model with that"
        )
    tokens = said("tokens")
    merges = said("merges")
    eos = said("eos_token_id")
    for key, value in (("tokens", tokens), ("merges", merges), ("eos_token_id", eos)):
        if value is None:
            raise UsageError(f"{where}: tokenizer.ggml.{key} is missing; convert the model again")
    kind = SAME.get(pre, pre)
    if kind not in KNOWN:
        known = sorted([*KNOWN, *SAME])
        near = nearest_name(str(pre), known)
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(
            f"{where}: its text is cut into words by {pre!r} (tokenizer.ggml.pre), but crystalline "
            f"knows {', '.join(known)}{hint}; import a model with one of these"
        )
    types = said("token_type") or [NORMAL] * len(tokens)
    bos = said("bos_token_id", eos)
    if len(types) != len(tokens) or not 0 <= eos < len(tokens) or not 0 <= bos < len(tokens):
        raise UsageError(f"{where}: tokenizer.ggml.* do not fit together; convert the model again")
    # llama.cpp puts a token in front for this kind unless the file says otherwise.
    add_bos = bool(said("add_bos_token", kind == "llama-bpe"))
    template = meta.get("tokenizer.chat_template")
    return Vocabulary(tokens, types, merges, kind, eos, bos, add_bos,
                      template if isinstance(template, str) else None)  # fmt: skip


def to_tokenizer(v: Vocabulary, where: str) -> Tokenizer:
    """The tokenizer, as a tokenizer.json has it.  Unused ids become holes."""
    vocab = {t: i for i, (t, kind) in enumerate(zip(v.tokens, v.types, strict=True))
             if kind != UNUSED}  # fmt: skip
    try:
        merges = [tuple(m.split(" ")) for m in v.merges]
        model = models.BPE(vocab, merges, ignore_merges=v.pre in WHOLE_WORDS)  # type: ignore[arg-type]
        backend = tokenizers.Tokenizer(model)
    except Exception as error:  # the package raises bare Exception
        raise UsageError(
            f"{where}: tokens and merges do not fit together ({str(error).splitlines()[0]}); "
            "convert the model again"
        ) from error
    backend.decoder = decoders.ByteLevel()
    for i, (token, kind) in enumerate(zip(v.tokens, v.types, strict=True)):
        special = kind in (UNKNOWN, CONTROL) or i in (v.eos, v.bos)
        if special or kind == USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=special, normalized=False)])
    described = json.loads(backend.to_str())
    described["pre_tokenizer"] = pre_tokenizer(v.pre)
    if v.add_bos:
        described["post_processor"] = _begins_with(v.tokens[v.bos], v.bos)
    data = (json.dumps(described, ensure_ascii=False, indent=2) + "\n").encode()
    return Tokenizer.from_json(data, where, v.eos, v.bos, v.chat_template)


def _begins_with(token: str, id: int) -> dict[str, Any]:
    """The post-processor that puts a token in front of every text."""

    def part(kind: str, name: str, number: int) -> dict[str, Any]:
        return {kind: {"id": name, "type_id": number}}

    first, a, b = part("SpecialToken", token, 0), part("Sequence", "A", 0), part("Sequence", "B", 1)
    return {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, part("SpecialToken", token, 1), b],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


def from_tokenizer(tokenizer: Tokenizer, size: int, where: str) -> Vocabulary:
    """``size`` tokens for a GGUF file; ids that nothing has are filled up as unused ones.

    UsageError for a tokenizer whose way of cutting words has no name in llama.cpp.
    """
    described = json.loads(tokenizer.to_json())
    kind, model = kind_of(described), described["model"]
    if kind is None or described.get("normalizer") is not None:
        part = "pre_tokenizer" if kind is None else "normalizer"
        raise UsageError(
            f"{where}: its {part} has no counterpart among {', '.join(KNOWN)}, so llama.cpp would "
            "make other tokens of a text; export it with --to hf"
        )
    if bool(model.get("ignore_merges")) != (kind in WHOLE_WORDS):
        raise UsageError(
            f"{where}: its ignore_merges is {bool(model.get('ignore_merges'))}, but llama.cpp "
            f"does the opposite for {kind}; export it with --to hf"
        )
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for token, id in model["vocab"].items():
        tokens[id], types[id] = token, NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return Vocabulary(tokens, types, _merges(model["merges"]), kind, tokenizer.eot, tokenizer.bos,
                      tokenizer.adds_bos, tokenizer.chat_template)  # fmt: skip


def _merges(merges: Sequence[str | Sequence[str]]) -> list[str]:
    """Older files hold "a b", newer ones ["a", "b"]."""
    return [m if isinstance(m, str) else " ".join(m) for m in merges]
