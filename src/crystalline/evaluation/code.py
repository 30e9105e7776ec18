"""How much of what a model writes parses, beside the same share of real code.

A model writes pieces from a language's prompts.  Each is cut at its last complete line, and counts
if it then parses without an error; one without a complete line does not.  Most pieces end in the
middle of something, and real code cut there does not parse either.  So for every piece a piece of
held-out code is taken that begins at a line with the same prompt and has the same number of
characters, and is cut and judged in the same way: its share is what a perfect model would reach.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystalline.data.reading import collect
from crystalline.errors import DataError
from crystalline.evaluation.parsing import (
    LANGUAGES,
    Judge,
    Language,
    beginnings,
    judges,
    whole_lines,
)
from crystalline.evaluation.score import held_out
from crystalline.inference.model import Model, load

SAMPLES, TOKENS, TEMPERATURE = 64, 200, 0.8  # pieces, their longest length, how they are drawn
TOGETHER = 16  # pieces written at a time: what bounds the memory of their caches

OnProgress = Callable[[float, float], None]


@dataclass(frozen=True)
class Piece:
    """A piece of code, cut at a line's end, and what each judge says of it."""

    prompt: str
    text: str
    parses: dict[str, bool]

    def described(self) -> dict[str, Any]:
        """JSON-able."""
        return {"prompt": self.prompt, "text": self.text, **self.parses}


@dataclass(frozen=True)
class CodeEvaluation:
    """Generated pieces, and beside each a real one of its length."""

    language: str
    judges: tuple[str, ...]
    generated: list[Piece]
    real: list[Piece]
    same_start: int  # real pieces whose first line begins with the whole prompt
    documents: int  # that the real pieces are from
    max_tokens: int
    temperature: float
    seed: int

    def count(self, pieces: Sequence[Piece], judge: str, prompt: str | None = None) -> int:
        """How many pieces a judge passes, of all or of one prompt."""
        return sum(p.parses[judge] for p in pieces if prompt in (None, p.prompt))

    def prompts(self) -> dict[str, int]:
        """The prompts, and how many pieces begin with each."""
        return {
            prompt: n
            for prompt in LANGUAGES[self.language].prompts
            if (n := sum(p.prompt == prompt for p in self.generated))
        }

    def described(self) -> dict[str, Any]:
        """JSON-able: shares from 0 to 1 by judge, in all and by prompt, and every piece."""
        sides = {"generated": self.generated, "real": self.real}
        shares = {
            side: {judge: self.count(pieces, judge) / len(pieces) for judge in self.judges}
            for side, pieces in sides.items()
        }
        by_prompt = {
            prompt: {
                "pieces": n,
                **{
                    side: {judge: self.count(pieces, judge, prompt) / n for judge in self.judges}
                    for side, pieces in sides.items()
                },
            }
            for prompt, n in self.prompts().items()
        }
        return {
            "language": self.language, "pieces": len(self.generated), "shares": shares,
            "prompts": by_prompt, "same_start": self.same_start, "documents": self.documents,
            "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed,
            "written": [piece.described() for piece in self.generated],
            "read": [piece.described() for piece in self.real],
        }  # fmt: skip


def evaluate_code(
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]] = (),
    language: str = "c",
    *,
    samples: int = SAMPLES,
    max_tokens: int = TOKENS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> CodeEvaluation:
    """Lets the model in a folder write ``samples`` pieces of at most ``max_tokens`` tokens and
    judges them, beside as many pieces of the code in ``paths`` (without them, of the text that its
    training held out).

    Piece i goes on from prompt i mod P of the language's P prompts, with seed ``seed`` + i.  Raises
    UsageError, also where the packages that judge are missing, DataError, CheckpointError.
    """
    by_name, said = judges(language), LANGUAGES[language]
    model = load(folder, threads)
    real = Real(_texts(Path(folder), paths, said, model), seed)
    begun = [said.prompts[i % len(said.prompts)] for i in range(samples)]
    written: list[str] = []
    for at in range(0, samples, TOGETHER):
        prompts = begun[at : at + TOGETHER]
        texts = model.generate_batch(
            prompts, max_tokens=max_tokens, temperature=temperature, seed=seed + at
        )
        written += [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        if on_progress is not None:
            on_progress(len(written), samples)
    read = [real.like(prompt, len(text)) for prompt, text in zip(begun, written, strict=True)]
    return CodeEvaluation(
        language, tuple(by_name), _judged(begun, written, by_name), _judged(begun, read, by_name),
        real.same_start, len(real.texts), max_tokens, temperature, seed,
    )  # fmt: skip


def _judged(
    prompts: Iterable[str], texts: Iterable[str], by_name: dict[str, Judge]
) -> list[Piece]:
    pieces = []
    for prompt, text in zip(prompts, texts, strict=True):
        cut = whole_lines(text)
        parses = {name: bool(cut) and judge(cut) for name, judge in by_name.items()}
        pieces.append(Piece(prompt, cut, parses))
    return pieces


class Real:
    """Held-out code, of which pieces are taken by chance: the same for the same seed."""

    def __init__(self, texts: list[str], seed: int) -> None:
        self.texts, self.bits = texts, np.random.PCG64(seed)
        self.same_start = 0
        self._known: dict[str, tuple[bool, list[tuple[int, int]]]] = {}

    def like(self, prompt: str, length: int) -> str:
        """``length`` characters from where a line begins with the prompt, or else with its first
        word, or else anywhere; fewer only where no such place has so many behind it."""
        if prompt not in self._known:
            self._known[prompt] = self._places(prompt)
        same, places = self._known[prompt]
        enough = [(t, a) for t, a in places if len(self.texts[t]) - a >= length] or places
        text, at = enough[int(self.bits.random_raw()) % len(enough)]
        self.same_start += same
        return self.texts[text][at : at + length]

    def _places(self, prompt: str) -> tuple[bool, list[tuple[int, int]]]:
        """Whether the lines begin with the whole prompt; text and place of each."""
        for begin in (prompt, prompt.split(maxsplit=1)[0], ""):
            found = [(i, at) for i, text in enumerate(self.texts) for at in beginnings(text, begin)]
            if found:
                return begin == prompt, found
        raise DataError("the held-out code is blank; name files that hold some")


def _texts(
    root: Path, paths: Sequence[str | os.PathLike[str]], language: Language, model: Model
) -> list[str]:
    """The held-out texts that are code: by their names, or where these are not known by a line that
    begins with one of the prompts.  All texts, if none is."""
    if paths:
        sources, _ = collect(paths)
        named = [s for s in sources if s.path.endswith(language.suffixes)]
        return [source.read() for source in named or sources]
    documents, _ = held_out(root, model.tokenizer)
    texts = [model.tokenizer.decode(document.tokens) for document in documents]
    code = [t for t in texts if any(beginnings(t, prompt) for prompt in language.prompts)]
    return code or texts
