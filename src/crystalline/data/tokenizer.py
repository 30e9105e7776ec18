"""Text to token ids and back: byte-level BPE, trained here or read from a ``tokenizer.json``.

Every byte is a token, so any text can be encoded and ``decode(encode(text)) == text``. The work is
done by the ``tokenizers`` package; this module feeds it bounded pieces and keeps its ids the same.

A long text is cut where that changes no id; splitting.py says where and why.
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

from crystalline.data.splitting import AT_WHITE_SPACE, cut_of
from crystalline.errors import ConfigError, UsageError

EOT = "<|endoftext|>"
END_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>")
SMALLEST_VOCAB = 257  # EOT and the 256 bytes

PIECE = 1 << 14  # characters encoded as one task: many tasks keep every thread busy
GROUP = 1 << 18  # characters encoded at a time: bounds the memory of their token strings
SAMPLE = 8_000_000  # characters the vocabulary is learnt from: more changes it little
SAMPLE_PIECE = 1 << 16  # characters kept or dropped together when there are more
LONG_WORD = 256  # characters; the trainer's time grows with the square of a word's length

_LONG = re.compile(rf"(\S{{{LONG_WORD}}}|\s{{{LONG_WORD}}})")

# Bytes that texts can do without: control characters, and what begins no character of UTF-8 that
# has been assigned. Some vocabularies, such as SmolLM2's, lack a few of them.
RARE = {*range(32), 127, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 256)} - set(b"\t\n\r")

_THREADS = "TOKENIZERS_PARALLELISM"
_POOL = "RAYON_NUM_THREADS"

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


def use_threads(count: int) -> None:
    """So many threads make tokens from now on, unless the environment says how many, or the first
    have been made: the package keeps those."""
    os.environ.setdefault(_POOL, str(count))


def default_vocab_size(corpus_bytes: int) -> int:
    """Vocabulary for a corpus: 1024 at 1 MB, four times as many for ten times the text."""
    size = 1024 * math.pow(corpus_bytes / 1e6, 0.6)
    return max(320, min(32000, round(size / 64) * 64))


class Tokenizer:
    """A byte-level BPE vocabulary. Make one with ``train``, ``load`` or ``from_json``."""

    def __init__(
        self, backend: tokenizers.Tokenizer, eot: int, *, bos: int | None = None,
        chat_template: str | None = None, data: bytes | None = None,
    ) -> None:  # fmt: skip
        backend.encode_special_tokens = True  # "<|endoftext|>" in a text is just these characters
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bytes = _token_bytes(backend)
        self._cut = cut_of(json.loads(backend.to_str()))
        self._data = data
        self.eot = eot
        self.bos = eot if bos is None else bos  # what a text begins with elsewhere
        self.chat_template = chat_template  # of a model that was taught to talk; kept, not used

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
    def from_json(
        cls, data: bytes, where: str, eot: int | None = None, bos: int | None = None,
        chat_template: str | None = None,
    ) -> Tokenizer:  # fmt: skip
        """Read the contents of a ``tokenizer.json``; ``where`` names it in errors.

        ``to_json`` gives the same bytes back. ``eot`` None finds the end-of-text token by its name.
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
        added = backend.get_added_tokens_decoder()
        if eot is not None and eot not in added:
            raise ConfigError(
                f"{where}: the model's texts end with token {eot}, which is none of its "
                f"{len(added)} added tokens; correct eos_token_id"
            )
        end = _find_eot(backend, where) if eot is None else eot
        bos = bos if bos in added else None
        return cls(backend, end, bos=bos, chat_template=chat_template, data=data)

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
            for piece in _cut(text, PIECE, self._cut) if self._cut else [text]:
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
        return self._data or self._backend.to_str(pretty=True).encode()

    @property
    def adds_bos(self) -> bool:
        """Whether elsewhere every text is given ``bos`` in front; ``encode`` adds nothing."""
        return self._backend.encode("").ids[:1] == [self.bos]

    @property
    def lost_bytes(self) -> list[int]:
        """The bytes that no token stands for: encoding a text leaves them out."""
        vocab = self._backend.get_vocab(with_added_tokens=False)
        return sorted(byte for symbol, byte in _byte_symbols().items() if symbol not in vocab)


def _cut(text: str, size: int, at: re.Pattern[str]) -> Iterator[str]:
    """Pieces of about ``size`` characters, cut where ``at`` allows it."""
    start = 0
    while cut := at.search(text, start + size):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _sample(texts: Iterable[str]) -> list[str]:
    """All of the texts in pieces, or every 2nd, 4th, 8th ... piece: at most SAMPLE characters."""
    kept: list[str] = []
    size, stride, seen = 0, 1, 0
    for text in texts:
        for natural in _cut(text, SAMPLE_PIECE, AT_WHITE_SPACE):
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
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"its {option} is {model[option]!r}, which stands for no bytes"
    missing = [b for s, b in _byte_symbols().items() if s not in model["vocab"] and b not in RARE]
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
