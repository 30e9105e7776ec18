"""A trained model in use: cache, sampling, stop strings, streaming, one text on any threads."""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, examples, prose
from hypothesis import given, settings
from hypothesis import strategies as st

import crystalline
from crystalline._native import Team, available_isas
from crystalline.checkpoints.checkpoint import load_model
from crystalline.decoder.decoder import Decoder, Parameters
from crystalline.errors import ConfigError, NumericsError, UsageError
from crystalline.inference.model import Model
from crystalline.inference.sampling import Sampling, draw
from crystalline.inference.speaker import until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inference")
    (root / "prose.txt").write_text(prose(4000))
    crystalline.train(root / "prose.txt", root / "m", **TINY, steps=150, lr=3e-3)
    return root / "m"


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return crystalline.load(folder)


def test_logits_and_loss_are_those_of_training(folder: Path, model: Model) -> None:
    """Packed weights and the cache give the training graph's bits."""
    config, _, tensors = load_model(folder)
    weights = Parameters(config)
    weights.load(tensors)
    ids = np.arange(1, 24, dtype=np.int32)
    decoder = Decoder(weights, Team(2), 1, 22)
    total = decoder.loss(ids[None, :-1], ids[None, 1:])
    assert model.loss(ids) == total / 22
    z = model.logits(ids[:-1]).astype(np.float64)
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert model.loss(ids) == pytest.approx(-logp[np.arange(22), ids[1:]].mean(), rel=1e-5)


def test_generation_one_by_one_equals_prefill(model: Model) -> None:
    """The token drawn from the cache is the one that all logits at once would give."""
    prompt = model.tokenizer.encode("the quick brown").tolist()
    text = model.generate("the quick brown", max_tokens=12, temperature=0)
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(model.logits(ids)[-1].argmax()))
    assert text == model.tokenizer.decode(ids[len(prompt) :])


def test_same_text_on_any_threads_and_instruction_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, logits = set(), set()
    for isa in available_isas():
        for threads in (1, 2, 3, 12):
            monkeypatch.setenv("CRYSTALLINE_ISA", isa)
            m = crystalline.load(folder, threads=threads)
            texts.add(m.generate("the", max_tokens=40, seed=5, temperature=1.0))
            logits.add(m.logits(range(20)).tobytes())
    assert len(texts) == 1 and len(logits) == 1


def test_text_goes_on_past_the_positions(model: Model) -> None:
    tokens = list(model._tokens([1, 2, 3], 100, Sampling(temperature=1.0), 0))
    assert len(tokens) > TINY["seq_len"] or len(tokens) < 100  # or it met the end of text
    long = model.generate("the quick brown fox " * 30, max_tokens=3)
    assert isinstance(long, str)


def test_seed_decides(model: Model) -> None:
    texts = [model.generate("seven", seed=s, temperature=1.5, max_tokens=30) for s in (0, 0, 1, 2)]
    assert texts[0] == texts[1] and len(set(texts)) == 3


def test_stream_is_generate_in_pieces(model: Model) -> None:
    pieces = list(model.stream("lamps", seed=3, max_tokens=30))
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate("lamps", seed=3, max_tokens=30)


def test_stop_strings_end_the_text_before_them(model: Model) -> None:
    whole = model.generate("the", seed=4, max_tokens=60)
    stop = whole[20:24]
    cut = model.generate("the", seed=4, max_tokens=60, stop=[stop, "never there"])
    assert cut == whole[: whole.index(stop)]
    assert model.generate("the", seed=4, max_tokens=60, stop=stop) == cut


def test_the_end_of_text_ends_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Model._project

    def certain(self: Model, h: np.ndarray) -> np.ndarray:
        logits = real(self, h)
        logits[:, self.tokenizer.eot] = 1e9
        return logits

    monkeypatch.setattr(Model, "_project", certain)
    assert model.generate("the") == ""


def test_characters_of_several_tokens_come_whole(model: Model) -> None:
    raw = [model.tokenizer.encode(c).tolist() for c in "né☃😀"]
    ids = [i for one in raw for i in one]
    assert "".join(model._pieces(iter(ids))) == "né☃😀"
    assert all("\ufffd" not in piece for piece in model._pieces(iter(ids)))
    assert "".join(model._pieces(iter(ids[:-1]))).endswith("\ufffd")


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(st.text("ab", max_size=40), STOPS, st.data())
@settings(max_examples=examples(200), deadline=None)
def test_until_is_the_text_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    def pieces() -> Iterator[str]:
        at = 0
        while at < len(text):
            n = data.draw(st.integers(1, 5))
            yield text[at : at + n]
            at += n

    # A stop string ends the text where the first one that is complete begins.
    want = text
    for end in range(1, len(text) + 1):
        found = [text[:end].find(s) for s in stops if s in text[:end]]
        if found:
            want = text[: min(found)]
            break
    got = "".join(until(pieces(), stops))
    if stops and want != text:
        assert text.startswith(got) and not any(s in got for s in stops)
    else:
        assert got == text


def frequencies(logits: list[float], s: Sampling, n: int = 4000) -> np.ndarray:
    bits, team = np.random.PCG64(1), Team(1)
    z = np.array(logits, np.float32)
    drawn = [draw(z.copy(), np.array([0]), s, bits, team) for _ in range(n)]
    return np.bincount(drawn, minlength=len(z)) / n


def test_sampling_follows_the_softmax() -> None:
    z = [2.0, 1.0, 0.0, -1.0, 1.0]
    for t in (0.5, 1.0, 2.0):
        p = np.exp(np.array(z) / t)
        assert np.abs(frequencies(z, Sampling(t)) - p / p.sum()).max() < 0.03


def test_each_filter_keeps_what_it_says() -> None:
    z = [math.log(w) for w in (0.5, 0.25, 0.15, 0.1)]
    support = lambda s: set(np.flatnonzero(frequencies(z, s, 1000)))  # noqa: E731
    assert support(Sampling(1.0)) == {0, 1, 2, 3}
    assert support(Sampling(1.0, top_k=2)) == {0, 1}
    assert support(Sampling(1.0, top_p=0.7)) == {0, 1}
    assert support(Sampling(1.0, top_p=0.8)) == {0, 1, 2}
    assert support(Sampling(1.0, min_p=0.25)) == {0, 1, 2}
    assert support(Sampling(0.0)) == {0}
    # Token 0 was seen: its logit is pushed down (they are negative, so multiplied).
    assert frequencies(z, Sampling(1.0, repetition_penalty=4.0))[0] < 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5, but must be a whole number"),
        ({"seed": None}, "seed is None, but must be a whole number"),
        ({"top_k": 2.5}, "top_k is 2.5, but must be a whole number"),
        ({"temperature": "x"}, "temperature is 'x', but must be a number"),
        ({"stop": 5}, "stop is 5, but must be a string or a list of strings"),
        ({"stop": ["a", 5]}, "stop holds 5, but must be a string or a list of strings"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    model: Model, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "_batch", None)  # what runs nothing needs none
    with pytest.raises((ConfigError, UsageError), match=words):
        model.stream("x", **options)
    with pytest.raises((ConfigError, UsageError), match=words):
        model.generate_batch(["x"], **options)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (None, "prompts is NoneType, but must be a list of strings"),
        ([b"x"], "prompt is bytes, but must be a string"),
        (["x", None], "prompt is NoneType, but must be a string"),
    ],
)
def test_prompts_that_are_no_strings_are_refused(model: Model, prompts: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model.generate_batch(prompts)


def test_prompts_may_come_one_by_one(model: Model) -> None:
    assert model.generate_batch(iter(["a", "b"]), max_tokens=3) == model.generate_batch(
        ["a", "b"], max_tokens=3
    )


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 3}])
def test_a_model_whose_logits_are_not_finite_says_so(
    model: Model, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    bad = np.zeros((1, model.config.vocab_size), np.float32)
    bad[0, 7] = np.nan
    monkeypatch.setattr(model, "_next_logits", lambda going: bad)
    with pytest.raises(NumericsError, match=r"logits are not finite.*weights"):
        model.generate("x", **options)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "1 or more ids"),
        ([[1, 2]], "shape"),
        (range(25), "the model knows 24 positions"),
        ([-1], "must be from 0 to 299"),
        ([300], "must be from 0 to 299"),
        ([1.5], "float64, but must be whole numbers"),
        ("12", "must be a list of 1 or more ids"),
        ([2**70], "object, but must be whole numbers"),
        (np.array([2**63], np.uint64), "from 9223372036854775808 to"),
    ],
)
def test_bad_ids_are_refused(model: Model, ids: list[int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model.logits(ids)


def test_loss_needs_two_ids(model: Model) -> None:
    with pytest.raises(UsageError, match="2 or more ids"):
        model.loss([1])


def test_optimizer_files_are_not_needed(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for name in ("optimizer.safetensors", "training_state.json", "metrics.jsonl"):
        os.unlink(bare / name)
    shutil.rmtree(bare / "data")
    assert crystalline.load(bare).generate("the", max_tokens=3)


def test_threads_share_a_model(model: Model) -> None:
    want = [model.generate("the", seed=s, max_tokens=20) for s in range(4)]
    got: dict[int, str] = {}

    def work(seed: int) -> None:
        got[seed] = model.generate("the", seed=seed, max_tokens=20)

    workers = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [got[s] for s in range(4)] == want
