"""Training on packed rows: what it measures and learns is that of padded rows, and it is exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import SMALL, invoke
from conftest import TINY, prose
from test_sequence_length import learnt, predictions
from test_spheres_bits import commanded
from test_training import STEPS, fingerprint, run
from watch import nothing_leaks, watchdog

import crystalline
from crystalline._native import available_isas
from crystalline.api import training
from crystalline.checkpoints.checkpoint import load_training
from crystalline.config import ModelConfig
from crystalline.data.batches import Batch, Batches
from crystalline.data.shards import TokenStore
from crystalline.decoder.decoder import Decoder, Parameters, initialise
from crystalline.errors import UsageError
from crystalline.progress import planned
from crystalline.spheres.node_zero import NodeZero
from crystalline.team import make_team

PACKED = {"packing": True, "steps": None, "epochs": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small documents, and a few long ones."""
    path = tmp_path_factory.mktemp("packed") / "texts"
    path.mkdir()
    for i in range(60):
        (path / f"{i:02}.txt").write_text(f"{i} " + prose(1 + 7 * i % 5 if i % 10 else 90, seed=i))
    return path


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed") / "model"
    events = run(folder, out, **PACKED, threads=1)
    return {"hash": fingerprint(out), "events": events, "out": out}


def test_every_prediction_is_trained_so_often_and_no_more(undisturbed: dict[str, Any]) -> None:
    events = undisturbed["events"]
    documents = TokenStore.open(undisturbed["out"]).train.documents
    assert learnt(events) == 2 * predictions(events, documents)
    steps = [event for event in events if event["event"] == "step"]
    full = TINY["batch_size"] * TINY["seq_len"]
    assert np.mean([event["tokens"] for event in steps[:-1]]) > 0.95 * full
    assert steps[-1]["epoch"] == 2
    assert np.mean([e["loss"] for e in steps[-3:]]) < steps[0]["loss"]


def test_packing_is_chosen_for_small_documents_and_said(folder: Path, tmp_path: Path) -> None:
    plans = []
    for name, said in (("chosen", {"packing": None}), ("not", {"packing": False})):
        events = run(folder, tmp_path / name, **said, steps=2)
        plans.append(next(event for event in events if event["event"] == "plan"))
        assert load_training(tmp_path / name)[1]["recipe"]["packing"] is plans[-1]["packing"]
    assert [plan["packing"] for plan in plans] == [True, False]
    assert "padding would be" in plans[0]["packing_reason"]
    assert plans[1]["packing_reason"] == "as asked for"


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("threads", [2, 5, 12])
def test_same_bits_on_any_threads_and_instruction_set(
    isa: str, threads: int, folder: Path, undisturbed: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}")
    monkeypatch.setenv("CRYSTALLINE_ISA", isa)
    run(folder, tmp_path / "m", **PACKED, threads=threads)
    assert fingerprint(tmp_path / "m") == undisturbed["hash"]


def test_resuming_at_any_step_gives_the_same_bits(
    folder: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    out, steps = tmp_path / "m", undisturbed["events"][-1]["step"]

    def stopping(node: NodeZero, step: int) -> None:
        node.stop()

    commanded(folder, out, stopping, **PACKED)
    for step in range(1, steps):
        assert load_training(out)[1]["progress"]["step"] == step
        commanded(None, out, stopping)
    assert load_training(out)[1]["progress"]["step"] == steps
    assert fingerprint(out) == undisturbed["hash"]


def test_lengths_and_batch_sizes_that_change_replay_and_resume(
    folder: Path, tmp_path: Path
) -> None:
    def changing(node: NodeZero, step: int) -> None:
        if step in (2, 4, 6):
            node.set(seq_len={2: 9, 4: 24, 6: 3}[step])
        if step == 3:
            node.set(batch_size=30)

    def stopping(node: NodeZero, step: int) -> None:
        changing(node, step)
        if step in (1, 5):
            node.stop()

    said = PACKED | {"batch_size": 5}
    with watchdog(120), nothing_leaks():
        commands = commanded(folder, tmp_path / "first", changing, **said)
        commanded(folder, tmp_path / "again", **said, replay=commands, threads=3)
        commanded(folder, tmp_path / "parts", stopping, **said)
        for _ in range(2):
            commanded(None, tmp_path / "parts", stopping)
    first = load_training(tmp_path / "first")[1]
    assert [T for _, T in first["batches"]["lengths"]] == [24, 9, 24, 3]
    store = TokenStore.open(tmp_path / "first").train
    assert first["progress"]["tokens"] == 2 * (store.tokens - store.documents)
    prints = {fingerprint(tmp_path / name) for name in ("first", "again", "parts")}
    assert len(prints) == 1


def test_what_is_measured_is_the_same_packed_and_padded(
    folder: Path, tmp_path: Path
) -> None:
    """Every window has its own bits; only the order of the sum is another."""
    with training(folder, tmp_path / "m", **TINY | {"packing": True}, steps=3) as trainer:
        assert trainer.start().wait()
        packed = trainer.validate(most=None)
        trainer.recipe = trainer.recipe.__class__(
            **{**trainer.recipe.__dict__, "packing": False}
        )
        padded = trainer.validate(most=None)
    assert packed is not None and padded is not None
    assert packed["tokens"] == padded["tokens"]
    assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-12)


def test_the_gradient_of_a_pass_is_the_same_packed_and_padded(
    undisturbed: dict[str, Any]
) -> None:
    """All documents in one batch, cut alike: the same sum, in another order."""
    split = TokenStore.open(undisturbed["out"]).train
    c, T = ModelConfig(300, 40, 2, 4, 2, 52, 300), 300  # so long that no document is cut
    team, gradients = make_team(2), []
    losses = []
    for packing in (False, True):
        stream = Batches(split, 1, T, 0, packing=packing)
        stream.batch_size = B = stream.sequences_in(1)
        batch: Batch = stream.batch(0)
        weights, out = Parameters(c), Parameters(c)
        initialise(weights, 1)
        decoder = Decoder(weights, team, B, T, out)
        count = int((batch.targets >= 0).sum())
        assert count == split.tokens - split.documents
        loss = decoder.gradient(
            batch.ids, batch.targets, 1.0 / count, False, None, batch.positions
        )
        losses.append(loss / count)
        gradients.append(out.flat.copy())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    scale = float(np.abs(gradients[0]).max())
    assert float(np.abs(gradients[1] - gradients[0]).max()) < 1e-5 * scale


@pytest.mark.parametrize("options", [{"loss": "sampled", "samples": 40}, {"precision": "bf16"}])
def test_other_losses_and_precisions_train_packed(
    options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    if options.get("precision") == "bf16" and not make_team(1).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    prints = []
    for threads in (1, 3):
        out = tmp_path / str(threads)
        run(folder, out, **options, packing=True, steps=STEPS, threads=threads)
        prints.append(fingerprint(out))
    assert prints[0] == prints[1]


def test_the_command_takes_it_and_says_so(folder: Path, tmp_path: Path) -> None:
    for option in ("--packing", "--no-packing"):
        out = tmp_path / option
        said = invoke("train", folder, "--out", out, *SMALL, "--steps", 2, option, "--json")
        (plan,) = [e for e in map(json.loads, said.splitlines()) if e["event"] == "plan"]
        assert (", packed" in dict(planned(plan))["training"]) == (option == "--packing")
        state = load_training(out)[1]
        assert state["recipe"]["packing"] is (option == "--packing")
    with pytest.raises(UsageError, match="packing cannot change when resuming"):
        crystalline.train(out=tmp_path / "--packing", resume=True, steps=4, packing=False)


def test_generating_after_packed_training(undisturbed: dict[str, Any]) -> None:
    assert isinstance(crystalline.load(undisturbed["out"]).generate("the", max_tokens=5), str)
