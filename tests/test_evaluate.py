"""Measuring a model: the figures of its own training to the last bit, those of transformers, and
the same ones however the work is cut."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command import invoke, run
from conftest import TINY, prose
from numpy.testing import assert_array_equal
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

import crystalline
from crystalline.__main__ import main
from crystalline.checkpoints.checkpoint import load_model, save_model
from crystalline.commands.waiting import ERASE, Waiting
from crystalline.data.batches import validation_batches
from crystalline.data.shards import Split, TokenStore
from crystalline.decoder.decoder import group_order
from crystalline.demo import bundled_text
from crystalline.errors import CheckpointError, DataError, NumericsError
from crystalline.evaluation import score
from crystalline.evaluation.score import evaluate
from crystalline.evaluation.windows import window_nats, windows

T = TINY["seq_len"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of several documents, some shorter than a window, one as long as many."""
    root = tmp_path_factory.mktemp("several")
    texts = root / "texts"
    texts.mkdir()
    for i in range(24):
        (texts / f"{i:02}.txt").write_text(prose(3 * 2**i % 700 + 1, seed=i) + "ünï ☃\n" * (i % 3))
    crystalline.train(texts, root / "m", **TINY, steps=30, lr=3e-3)
    return root / "m"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one document, beside the tenth of it that was held out."""
    root = tmp_path_factory.mktemp("single")
    text = prose(4000)
    (root / "prose.txt").write_text(text)
    (root / "tail.txt").write_text(text[int(0.9 * len(text)) :])
    crystalline.train(root / "prose.txt", root / "m", **TINY, steps=20, lr=3e-3)
    return root / "m"


def last_validation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training_state.json").read_text())["progress"]["validation"]


# --- the training's own figures -------------------------------------------------------------------


def test_the_held_out_text_costs_what_training_said(single: Path) -> None:
    want = last_validation(single)
    for got in (evaluate(single).total, evaluate(single, [single.parent / "tail.txt"]).total):
        assert (got.loss, got.bits_per_byte) == (want["loss"], want["bits_per_byte"])
        assert got.tokens == want["tokens"]
        assert got.bytes == (single.parent / "tail.txt").stat().st_size


def test_several_held_out_documents_cost_what_training_said(model: Path) -> None:
    want, got = last_validation(model), evaluate(model)
    assert len(got.documents) == TokenStore.open(model).val.documents > 1
    assert (got.total.loss, got.total.bits_per_byte) == (want["loss"], want["bits_per_byte"])
    assert got.total.bytes == TokenStore.open(model).val.bytes


def test_bf16_is_measured_as_it_was_trained(tmp_path: Path) -> None:
    if not crystalline.team.make_team(1).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    (tmp_path / "prose.txt").write_text(prose(3000))
    sizes = TINY | {"precision": "bf16"}
    crystalline.train(tmp_path / "prose.txt", tmp_path / "m", **sizes, steps=10, lr=3e-3)
    want, got = last_validation(tmp_path / "m"), evaluate(tmp_path / "m")
    assert (got.precision, got.total.loss) == ("bf16", want["loss"])
    wide = evaluate(tmp_path / "m", precision="fp32").total.loss
    assert wide != got.total.loss and wide == pytest.approx(got.total.loss, rel=1e-3)


# --- independent of how the work is cut -----------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("most", [1, 5 * T, 40 * T])
def test_batches_and_threads_change_no_bit(
    model: Path, monkeypatch: pytest.MonkeyPatch, threads: int, most: int
) -> None:
    want = evaluate(model, [model.parent / "texts"])
    monkeypatch.setattr(score, "BATCH_TOKENS", most)
    monkeypatch.setattr(score, "GROUP", 1000)
    got = evaluate(model, [model.parent / "texts"], threads=threads)
    assert (got.total, got.documents) == (want.total, want.documents)
    assert len(got.documents) == 24


def test_a_text_costs_the_same_alone_and_among_others(model: Path) -> None:
    together = {s.name: s for s in evaluate(model, [model.parent / "texts"]).documents}
    for name in ("03.txt", "09.txt"):
        path = model.parent / "texts" / name
        alone = evaluate(model, [path])
        assert alone.documents == [together[str(path)]]
        assert alone.total.nats == alone.documents[0].nats


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[1], [2, 24, 25, 26], [3, 100, 1, 49, 48]])
def test_windows_side_by_side_are_those_of_training(lengths: list[int]) -> None:
    rows = [np.arange(100 * i, 100 * i + n + 1, dtype=np.int32) for i, n in enumerate(lengths)]
    offsets = np.cumsum([0, *map(len, rows)])
    split = Split([np.concatenate(rows).astype(np.uint16)], offsets, 1, 7)
    ids, targets, _ = next(validation_batches(split, 20, T))
    cut = [window for row in rows for window in windows(row, T, T)]
    assert len(cut) == int((targets[:, 0] >= 0).sum())
    for i, (its_ids, its_targets) in enumerate(cut):
        assert_array_equal(its_ids, ids[i, : len(its_ids)])
        assert_array_equal(its_targets, targets[i, : len(its_targets)])
        assert (targets[i, len(its_targets) :] == -1).all()


@pytest.mark.parametrize("stride", [1, 7, 23, 24])
@pytest.mark.parametrize("predictions", [1, 24, 25, 31, 48, 100])
def test_every_prediction_is_asked_once_with_the_context_of_the_stride(
    stride: int, predictions: int
) -> None:
    row = np.arange(predictions + 1, dtype=np.int32)
    asked: list[int] = []
    for ids, targets in windows(row, T, stride):
        assert len(ids) == len(targets) <= T
        counted = targets[targets >= 0]
        context = counted - ids[0]
        assert (context > (T - stride if asked else 0)).all()
        asked += counted.tolist()
    assert asked == list(range(1, predictions + 1))


def test_losses_are_taken_window_by_window() -> None:
    """Also of packed sequences, whose order in memory is that of the groups."""
    B, length = 14, 5
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(B, length)).astype(np.float32)
    order, _ = group_order(B)
    space = SimpleNamespace(a={"losses": losses[order].reshape(-1)})
    decoder: Any = SimpleNamespace(B=B, T=length, order=order, space=space)
    assert window_nats(decoder) == [math.fsum(row) for row in losses.tolist()]
    positions = np.tile(np.arange(length, dtype=np.int32), (B, 1))
    positions[3] = [0, 1, 0, 1, 2]
    packed = window_nats(decoder, positions)
    assert len(packed) == B + 1 and packed[:3] == window_nats(decoder)[:3]
    assert packed[3:5] == [math.fsum(losses[3, :2].tolist()), math.fsum(losses[3, 2:].tolist())]
    assert packed[5:] == window_nats(decoder)[4:]


def test_more_context_costs_less(model: Path) -> None:
    text = model.parent / "texts" / "07.txt"
    short, usual = (evaluate(model, [text], seq_len=n).total for n in (4, T))
    assert short.tokens == usual.tokens and short.nats > usual.nats
    sliding = evaluate(model, [text], stride=3)
    assert sliding.total.tokens == usual.tokens and sliding.total.nats != usual.nats
    assert evaluate(model, [text], stride=T).total == usual


# --- an independent program -----------------------------------------------------------------------


@pytest.mark.parametrize("stride", [T, 5])
def test_transformers_agrees(model: Path, stride: int) -> None:
    """Prediction by prediction, each in the first window that asks for it."""
    theirs = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    paths = [model.parent / "texts" / f"{i:02}.txt" for i in (0, 3, 5, 10)]
    got = evaluate(model, paths, stride=stride)
    for path, ours in zip(paths, got.documents, strict=True):
        ids = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
        row = torch.tensor([tokenizer.eos_token_id, *ids, tokenizer.eos_token_id])
        begins = [0 if i <= T else -(-(i - T) // stride) * stride for i in range(1, len(row))]
        cut = [row[a : a + T] for a in sorted(set(begins))]
        with torch.no_grad():
            logits = theirs(pad_sequence(cut, batch_first=True)).logits.double()
        window = {begin: i for i, begin in enumerate(sorted(set(begins)))}
        nats = [
            float(cross_entropy(logits[window[begin], i - begin], row[i + 1]))
            for i, begin in enumerate(begins)
        ]
        assert ours.tokens == len(nats) and ours.bytes == path.stat().st_size
        assert ours.nats == pytest.approx(math.fsum(nats), rel=2e-6)
    assert got.total.nats == pytest.approx(sum(d.nats for d in got.documents), rel=1e-15)


def test_the_figures_follow_from_the_nats() -> None:
    one = score.Score("x", tokens=10, bytes=25, nats=20.0)
    assert one.loss == 2.0 and one.perplexity == math.exp(2.0)
    assert one.bits_per_byte == pytest.approx(20 / math.log(2) / 25, rel=1e-15)
    wild = score.Score("x", tokens=1, bytes=1, nats=1e4)
    assert wild.perplexity == math.inf and wild.described()["perplexity"] is None


def test_the_bundled_text_is_split_where_its_bytes_are() -> None:
    """The last tenth of the characters of Tiny Shakespeare is the last tenth of its bytes."""
    text = bundled_text()
    assert text.isascii() and len(text) == 1115394
    assert int(0.9 * len(text.decode())) == len(text) * 9 // 10 == 1003854


# --- the command ----------------------------------------------------------------------------------


def test_the_command_says_what_the_library_does(model: Path) -> None:
    texts = model.parent / "texts"
    want = evaluate(model, [texts], stride=9)
    args = ["eval", model, texts, "--stride", 9, "--threads", 1]
    said = json.loads(invoke(*args, "--per-document", "--json"))
    assert said["total"] == want.total.described() and said["documents"] == 24
    assert said["per_document"] == [one.described() for one in want.documents]
    assert (said["seq_len"], said["stride"], said["precision"]) == (T, 9, "fp32")
    head, *rows = invoke(*args).splitlines()
    assert head.split() == ["text", "bytes", "tokens", "nats/token", "perplexity", "bits/byte"]
    total = want.total
    assert [row.split() for row in rows] == [[
        "all", f"{total.bytes:,}", f"{total.tokens:,}", f"{total.loss:.4f}",
        f"{total.perplexity:.2f}", f"{total.bits_per_byte:.4f}",
    ]]  # fmt: skip
    named = invoke(*args, "--per-document").splitlines()
    assert [line.split()[0] for line in named[1:-1]] == [one.name for one in want.documents]
    assert len({len(line) for line in named}) == 1  # columns


def test_a_single_text_has_one_row(single: Path) -> None:
    for words in ([], ["--per-document"]):
        assert [line.split()[0] for line in invoke("eval", single, *words).splitlines()] == [
            "text", "held",
        ]  # fmt: skip


def test_files_that_are_no_text_are_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the lamps\n")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    code, out, err = run("eval", model, tmp_path)
    assert code == 0 and "a.txt" in out
    assert err == f"skipped 1, such as {tmp_path}/b.bin (binary)\n"


REFUSED = [
    (["--seq-len", "0"], 2, "seq_len is 0, but must be a whole number from 1 to 24"),
    (["--seq-len", "25"], 2, "seq_len is 25, but must be a whole number from 1 to 24: the model"),
    (["--stride", "25"], 2, "stride is 25, but must be a whole number from 1 to 24: a window"),
    (["--seq-len", "8", "--stride", "9"], 2, "must be a whole number from 1 to 8: a window"),
    (["no such file"], 2, "no such file: no such file or folder; check the spelling"),
    (["--threads", "0"], 2, "threads is 0, but must be 1 to 4096"),
]


@pytest.mark.parametrize(("words", "code", "says"), REFUSED)
def test_mistakes_are_told_in_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    assert main(["eval", str(model), *words]) == code
    err = capsys.readouterr().err
    assert err.startswith("crystalline: error: ") and err.count("\n") == 1 and says in err


def test_a_folder_without_a_model_or_without_held_out_text(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        evaluate(tmp_path)
    shutil.copytree(model, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "data")
    with pytest.raises(DataError, match="holds no held-out text; name files or folders"):
        evaluate(tmp_path / "m")
    # The model alone is enough to measure texts with.
    text = [model.parent / "texts" / "05.txt"]
    assert evaluate(tmp_path / "m", text).total == evaluate(model, text).total
    assert evaluate(model / "best", text).total.bytes == text[0].stat().st_size


def test_weights_that_are_not_finite_are_told(model: Path, tmp_path: Path) -> None:
    config, tokenizer, tensors = load_model(model)
    tensors["model.norm.weight"][3] = np.inf
    save_model(tmp_path / "m", config, tokenizer, tensors)
    with pytest.raises(NumericsError, match=r"the loss is not finite; .* choose precision fp32"):
        evaluate(tmp_path / "m", [model.parent / "texts"])


# --- while one waits ------------------------------------------------------------------------------


class Clock:
    """A clock that is told what it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("crystalline.commands.waiting.time.monotonic", lambda: self.now)


def test_long_works_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, to = Clock(monkeypatch), io.StringIO()
    with Waiting("measuring", to=to) as waiting:
        for clock.now, done in ((101.9, 19), (102.5, 25), (103, 30), (112.6, 50), (113, 100)):
            waiting(done, 100)
    assert to.getvalue() == "measuring: 25 %, 0:08 left\nmeasuring: 50 %, 0:13 left\n"


def test_a_terminal_has_one_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, to = Clock(monkeypatch), io.StringIO()
    monkeypatch.setattr(to, "isatty", lambda: True)
    with Waiting("measuring", to=to) as waiting:
        for clock.now, done in ((102.1, 21), (102.2, 22), (102.4, 24)):
            waiting(done, 100)
    first, second, last = to.getvalue().split(ERASE)[1:]
    assert (first, second, last) == ("measuring: 21 %, 0:08 left", "measuring: 24 %, 0:08 left", "")


def test_measuring_tells_bytes_done_up_to_all(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(score, "BATCH_TOKENS", 4 * T)
    texts = model.parent / "texts"
    evaluate(model, [texts], stride=7, on_progress=lambda done, total: told.append((done, total)))
    size = sum(path.stat().st_size for path in texts.iterdir())
    done = [d for d, _ in told]
    assert done == sorted(done) and len(done) > 10
    assert {total for _, total in told} == {size} and done[-1] == pytest.approx(size)
