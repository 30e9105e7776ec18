"""How tokenizers cut a text into words before BPE: the kinds that are known, by llama.cpp's names.

BPE never looks beyond a word, so a long text may be encoded in parts if it is cut where a word
begins whatever stands around. Two such places:

* GPT-2's pattern has white space only first in a match or throughout one: the first of a run of
  white space begins a match. Cutting off digits or punctuation beforehand changes nothing there.
* Llama 3's and Qwen 2's patterns let line ends follow punctuation in one match, but a space after
  anything else than white space begins a match there too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Step = tuple[Any, ...]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS: Step = ("ByteLevel", False, True)  # add_prefix_space, use_regex
BYTES: Step = ("ByteLevel", False, False)


def _split(pattern: str) -> Step:
    return ("Split", pattern, "Isolated", False)


# Named as in a GGUF file's tokenizer.ggml.pre.
KNOWN: dict[str, tuple[Step, ...]] = {
    "gpt-2": (WORDS,),
    "smollm": (("Digits", True), WORDS),
    "llama-bpe": (_split(_MODERN.replace("DIGITS", "{1,3}")), BYTES),
    "qwen2": (_split(_MODERN.replace("DIGITS", "")), BYTES),
    "default": (
        _split(r"[\p{P}\$\+<=>\^~\|]+"), _split(GPT2), _split(r"\p{N}+"),
        _split("[0-9][0-9][0-9]"), BYTES,
    ),
}  # fmt: skip
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe"}
SAME |= dict.fromkeys(("phi-2", "mpt", "olmo", "jais"), "gpt-2")
SAME |= dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone"), "smollm")
SAME |= dict.fromkeys(("deepseek-r1-qwen", "megrez", "stablelm2"), "qwen2")

# Python's \s holds all of the patterns' white space and more, so its \S is \S there too.
AT_WHITE_SPACE = re.compile(r"(?<=\S)[ \n\r\t]")
AT_A_SPACE = re.compile(r"(?<=\S) ")
CUTS = dict.fromkeys(("gpt-2", "smollm", "default"), AT_WHITE_SPACE)
CUTS |= dict.fromkeys(("llama-bpe", "qwen2"), AT_A_SPACE)

_OPTIONS = {  # type of a step: its options and what they are when they are not said
    "ByteLevel": (("add_prefix_space", True), ("use_regex", True)),
    "Digits": (("individual_digits", False),),
    "Split": (("pattern", None), ("behavior", None), ("invert", False)),
}


def kind_of(described: Mapping[str, Any]) -> str | None:
    """The known kind that a tokenizer.json's pre-tokenizer is; None for any other."""
    pre = described.get("pre_tokenizer") or {}
    steps = tuple(_step(one) for one in pre.get("pretokenizers", [pre]))
    return next((name for name, known in KNOWN.items() if steps == known), None)


def cut_of(described: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Where a text may be cut so that no id changes; None where that is not known."""
    kind = kind_of(described)
    plain = described.get("normalizer") is None
    # What is looked for in the raw text might lie across a cut.
    plain = plain and all(token["special"] for token in described["added_tokens"])
    return CUTS[kind] if kind is not None and plain else None


def pre_tokenizer(kind: str) -> dict[str, Any]:
    """The pre_tokenizer of a tokenizer.json of a known kind."""
    steps = [_described(step) for step in KNOWN[kind]]
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _step(described: Mapping[str, Any]) -> Step:
    options = _OPTIONS.get(described.get("type", ""), ())
    said = [described.get(name, default) for name, default in options]
    if said and described["type"] == "Split":
        said[0] = said[0].get("Regex") if isinstance(said[0], Mapping) else None
    return (described.get("type"), *said)


def _described(step: Step) -> dict[str, Any]:
    names = [name for name, _ in _OPTIONS[step[0]]]
    said = dict(zip(names, step[1:], strict=True))
    if step[0] == "Split":
        said["pattern"] = {"Regex": said["pattern"]}
    return {"type": step[0], **said} | ({"trim_offsets": True} if step[0] == "ByteLevel" else {})
