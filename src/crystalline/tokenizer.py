"""Text to token ids and back: byte-level BPE, trained here or read from a ``tokenizer.json``.

Every byte is a token, so any text can be encoded and ``decode(encode(text)) == text``. The work is
done by the ``tokenizers`` package; this module feeds it bounded pieces and keeps its ids the same.

Why cutting a long text changes no id.  GPT-2's pattern splits a text into words, and BPE never
looks beyond a word:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

White space occurs in a match only as its first character or throughout, so the first character of
a run of white space always begins a match. A text cut in front of it loses nothing on the left,
because the last match there neither reaches nor looks past its own end, and nothing on the right,
because matching only looks forward.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from crystalline.errors import ConfigError, UsageError

EOT = "<|endoftext|>"
END_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>")
SMALLEST_VOCAB = 257  # EOT and the 256 bytes

PIECE = 1 << 14  # characters encoded as one task: many tasks keep every thread busy
GROUP = 1 << 18  # characters encoded at a time: bounds the memory of their token strings
SAMPLE = 8_000_000  # characters the vocabulary is learnt from: more changes it little
SAMPLE_PIECE = 1 << 16  # characters kept or dropped together when there are more
LONG_WORD = 256  # characters; the trainer's time grows with the square of a word's length

# Python's \s holds all of the pattern's white space and more, so its \S is \S there too.
_CUT = re.compile(r"(?<=\S)[ \n\r\t]")
_LONG = re.compile(rf"(\S{{{LONG_WORD}}}|\s{{{LONG_WORD}}})")

_THREADS = "TOKENIZERS_PARALLELISM"

Ids = npt.NDArray[np.int32]


def _before_fork() -> None:
    os.environ.setdefault(_THREADS, "")


def _after_fork_in_parent() -> None:
    if os.environ.get(_THREADS) == "":
        del os.environ[_THREADS]


def _after_fork_in_child() -> None:
    os.environ[_THREADS] = "false"


# A forked child has none of the package's threads and would wait for them for ever, so it works
# without. A setting during the fork, even an empty one, keeps older versions from printing that.
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def default_vocab_size(corpus_bytes: int) -> int:
    """Vocabulary for a corpus: 1024 at 1 MB, four times as many for ten times the text."""
    size = 1024 * math.pow(corpus_bytes / 1e6, 0.6)
    return max(320, min(32000, round(size / 64) * 64))


class Tokenizer:
    """A byte-level BPE vocabulary. Make one with ``train``, ``load`` or ``from_json``."""

    def __init__(self, backend: tokenizers.Tokenizer, eot: int) -> None:
        backend.encode_special_tokens = True  # "<|endoftext|>" in a text is just these characters
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bytes = _token_bytes(backend)
        self._cuttable = _cuttable(json.loads(backend.to_str()))
        self.eot = eot

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens and holes included."""
        return len(self._bytes)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary; EOT is id 0, the 256 bytes follow.

        The result depends on the texts and their order only. It has fewer than ``vocab_size``
        entries when the texts hold too few repeated pairs. At most ``SAMPLE`` characters are used,
        taken evenly. Raises ConfigError for a ``vocab_size`` that cannot hold every byte.
        """
        if vocab_size < SMALLEST_VOCAB:
            raise ConfigError(
                f"vocab_size is {vocab_size}, but the 256 bytes and {EOT} need"
                f" {SMALLEST_VOCAB}; choose {SMALLEST_VOCAB} or more, such as 1024"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        sample = _sample(texts)
        # Each entry shortens the text. The trainer reserves room for all it is told to find.
        most = SMALLEST_VOCAB + 4 * sum(map(len, sample))
        trainer = trainers.BpeTrainer(
            vocab_size=min(vocab_size, most),
            min_frequency=2,  # a pair seen once is not a habit of the text
            special_tokens=[EOT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        words = (part for piece in sample for part in _LONG.split(piece))
        backend.train_from_iterator(words, trainer)
        return cls(backend, 0)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Tokenizer:
        """Read the contents of a ``tokenizer.json``; ``where`` names it in errors.

        Raises ConfigError unless it is a byte-level BPE with an end-of-text token.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(data.decode())
            described = json.loads(data)
        except Exception as error:  # the package raises bare Exception
            raise ConfigError(
                f"{where}: no tokenizer.json of the tokenizers package"
                f" ({str(error).splitlines()[0]}); give one saved by Tokenizer.save"
            ) from error
        problem = _unsuitable(described)
        if problem:
            raise ConfigError(f"{where}: {problem}; give a byte-level BPE such as GPT-2's")
        return cls(backend, _find_eot(backend, where))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a ``tokenizer.json``, or the one in a folder. Raises ConfigError."""
        name = os.fspath(path)
        if os.path.isdir(name):
            name = os.path.join(name, "tokenizer.json")
        try:
            with open(name, "rb") as file:
                data = file.read()
        except OSError as error:
            raise ConfigError(
                f"{name}: cannot be read ({error.strerror}); "
                "give a tokenizer.json or a folder that holds one"
            ) from error
        return cls.from_json(data, name)

    def encode(self, text: str) -> Ids:
        """The ids of a text, int32 (n,). Adds no special tokens and recognises none."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[Ids]:
        """``encode`` for several texts, on all threads."""
        parts: list[list[Ids]] = []
        pieces: list[str] = []
        owners: list[int] = []
        size = 0
        for index, text in enumerate(texts):
            parts.append([])
            for piece in _cut(text, PIECE) if self._cuttable else [text]:
                pieces.append(piece)
                owners.append(index)
                size += len(piece)
                if size >= GROUP:
                    self._encode_into(parts, owners, pieces)
                    pieces, owners, size = [], [], 0
        self._encode_into(parts, owners, pieces)
        return [np.concatenate(part) for part in parts]

    def _encode_into(self, parts: list[list[Ids]], owners: list[int], pieces: list[str]) -> None:
        try:
            encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
        except TypeError as error:
            raise UsageError(
                f"the text holds the lone surrogate {_first_surrogate(pieces)}, which is no"
                " character; give text that can be written as UTF-8"
            ) from error
        for owner, encoding in zip(owners, encodings, strict=True):
            parts[owner].append(np.array(encoding.ids, dtype=np.int32))

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """The text of ids. Special tokens are left out, invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, np.asarray(ids).tolist())).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token stands for; none for a special token. Raises UsageError."""
        if not 0 <= id < len(self._bytes):
            raise UsageError(f"token id {id} is not in the vocabulary 0..{len(self._bytes) - 1}")
        return self._bytes[id]

    def to_json(self) -> bytes:
        """The contents of a ``tokenizer.json``; the same bytes for the same vocabulary."""
        return self._backend.to_str(pretty=True).encode()


def _cut(text: str, size: int) -> Iterator[str]:
    """Pieces of about ``size`` characters that encode to the ids of the whole text."""
    start = 0
    while cut := _CUT.search(text, start + size):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _sample(texts: Iterable[str]) -> list[str]:
    """All of the texts in pieces, or every 2nd, 4th, 8th ... piece: at most SAMPLE characters."""
    kept: list[str] = []
    size, stride, seen = 0, 1, 0
    for text in texts:
        for natural in _cut(text, SAMPLE_PIECE):
            # Where a text has no white space even a cut through a word is better than no bound.
            for start in range(0, len(natural), 2 * SAMPLE_PIECE):
                if seen % stride == 0:
                    kept.append(natural[start : start + 2 * SAMPLE_PIECE])
                    size += len(kept[-1])
                seen += 1
                if size > SAMPLE:
                    kept = kept[::2]
                    size = sum(map(len, kept))
                    stride *= 2
    return kept


def _byte_symbols() -> dict[str, int]:
    """GPT-2's alphabet: the visible character that stands for each byte in a vocabulary."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _token_bytes(backend: tokenizers.Tokenizer) -> list[bytes]:
    symbols = _byte_symbols()
    vocab = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocab.values()) + 1)
    for token, id in vocab.items():
        if all(symbol in symbols for symbol in token):
            table[id] = bytes(symbols[symbol] for symbol in token)
        else:
            table[id] = token.encode()
    for id, added in backend.get_added_tokens_decoder().items():
        table[id] = b"" if added.special else added.content.encode()
    return table


def _cuttable(described: dict[str, Any]) -> bool:
    """Whether the argument at the head of this file holds for a tokenizer."""
    split = described.get("pre_tokenizer") or {}
    return (
        split.get("type") == "ByteLevel"
        and not split.get("add_prefix_space", True)
        and split.get("use_regex", True)
        and described.get("normalizer") is None
        and all(token["special"] for token in described["added_tokens"])
    )


def _unsuitable(described: dict[str, Any]) -> str:
    """What keeps a tokenizer from being used here; empty if nothing does."""
    model = described["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}, not BPE"
    if model.get("dropout"):
        return f"its dropout is {model['dropout']}, so the same text would get different ids"
    decoder = described.get("decoder") or {}
    chain = decoder.get("decoders", [decoder])
    if not any(step.get("type") == "ByteLevel" for step in chain):
        return "its tokens are not made of bytes (no ByteLevel decoder)"
    missing = [symbol for symbol in _byte_symbols() if symbol not in model["vocab"]]
    if missing:
        return f"{len(missing)} of the 256 bytes are not in its vocabulary"
    return ""


def _find_eot(backend: tokenizers.Tokenizer, where: str) -> int:
    added = backend.get_added_tokens_decoder()
    special = {token.content: id for id, token in added.items() if token.special}
    for name in END_NAMES:
        if name in special:
            return special[name]
    if len(special) == 1:
        return next(iter(special.values()))
    raise ConfigError(
        f"{where}: none of its special tokens ({', '.join(special) or 'it has none'}) is an"
        f" end of text; add one named {EOT}"
    )


def _first_surrogate(texts: list[str]) -> str:
    return next(f"U+{ord(c):04X}" for c in "".join(texts) if "\ud800" <= c <= "\udfff")
