"""Layers added to a model: the same function to the last bit, and from there on they learn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, prose
from test_commands import trains
from test_training import fingerprint, run, stop_at
from watch import eventually

import crystalline
from crystalline._native import available_isas
from crystalline.api import training
from crystalline.checkpoints import kept
from crystalline.checkpoints.checkpoint import load_model, load_training
from crystalline.checkpoints.info import describe, table
from crystalline.checkpoints.kept import listed
from crystalline.config import parameter_shapes
from crystalline.decoder.decoder import Decoder, Parameters
from crystalline.errors import CheckpointError, Interrupted, UsageError
from crystalline.inference.model import Model
from crystalline.spheres.live import load_live
from crystalline.team import make_team
from crystalline.training.trainer import Trainer

STEPS, AT = 16, 6


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers") / "prose.txt"
    path.write_text(prose(4000))
    return path


def stopped(text: Path, out: Path, **options: Any) -> Path:
    with pytest.raises(Interrupted):
        said = {**TINY, "steps": STEPS, "threads": 1, **options}
        crystalline.train(text, out, on_event=stop_at(AT), **said)
    return out


@pytest.fixture(scope="module")
def begun(text: Path) -> Path:
    return stopped(text, text.parent / "begun")


@pytest.fixture
def model(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "m"))


def grown(out: Path, layers: int = 4) -> Path:
    """With so many layers, at the same step."""
    with training(out=out, resume=True, layers=layers, threads=1) as trainer:
        trainer.begin()
        trainer.close()
    return out


def new_ones(names: Any, first: int = 2) -> list[str]:
    return [n for n in names if n.startswith("model.layers.") and int(n.split(".")[2]) >= first]


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_logits_are_the_same_bits(
    precision: str, isa: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}")
    monkeypatch.setenv("CRYSTALLINE_ISA", isa)
    ids = np.random.default_rng(0).integers(0, TINY["vocab_size"], TINY["seq_len"])
    before = crystalline.load(model, 2, precision).logits(ids)
    after = crystalline.load(grown(model), 2, precision)
    assert after.config.layers == 4
    assert after.logits(ids).tobytes() == before.tobytes()


def test_zeros_of_either_sign_change_no_bit(model: Path) -> None:
    """A new layer turns a -0 of its input into +0: nothing that follows may tell them apart."""
    config, tokenizer, weights = load_model(model)
    config2, _, weights2 = load_model(grown(model))
    rng = np.random.default_rng(1)
    table = weights["model.embed_tokens.weight"]
    table[rng.random(table.shape) < 0.3] = -0.0
    table[7] = -0.0  # a whole row: its norm divides by the root of eps alone
    weights["model.layers.1.mlp.down_proj.weight"][3] = -0.0
    weights2 = {n: weights.get(n, w) for n, w in weights2.items()}
    ids = [7, 3, 7, 7, 250, 9, 7]
    before = Model(config, tokenizer, weights, 1).logits(ids)
    after = Model(config2, tokenizer, weights2, 1).logits(ids)
    assert before.tobytes() == after.tobytes()
    assert (np.signbit(table) & (table == 0)).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_training_forward_is_the_same_bits(precision: str, model: Path) -> None:
    team = make_team(2)
    if precision == "bf16" and not team.has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    losses, rng = [], np.random.default_rng(2)
    B, T = TINY["batch_size"], TINY["seq_len"]
    ids, targets = rng.integers(0, TINY["vocab_size"], (2, B, T)).astype(np.int32)
    for layers in (2, 3, 7):
        config, _, tensors = load_model(grown(model, layers))
        weights, gradients = Parameters(config), Parameters(config)
        weights.load(tensors)
        decoder = Decoder(weights, team, B, T, gradients, precision)
        losses.append((decoder.loss(ids, targets), decoder.gradient(ids, targets, 1e-3, False)))
        # Both zero matrices have a gradient from the first step on.
        for name in new_ones(weights.named):
            zero = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert (np.abs(gradients.named[name]).max() > 0) == zero
    assert len(set(losses)) == 1


def test_what_the_folder_holds(model: Path) -> None:
    before = load_training(model)
    rows = (model / "metrics.jsonl").read_bytes()
    weights = load_model(model)[2]
    config, _, tensors = load_model(grown(model))
    moments, state = load_training(model)
    assert config.layers == 4 and tensors.keys() == parameter_shapes(config).keys()
    for name in weights:
        assert (tensors[name] == weights[name]).all()
        assert all((moments[p + name] == before[0][p + name]).all() for p in ("m.", "v."))
    for name in new_ones(tensors):
        assert not moments["m." + name].any() and not moments["v." + name].any()
        zero = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert tensors[name].any() != zero
    assert json.loads((model / "config.json").read_text())["num_hidden_layers"] == 4
    assert state["progress"] == before[1]["progress"]
    assert state["updates"] == before[1]["updates"]
    assert state["commands"][-1] == {
        "step": AT, "command": "SET", "sphere": -1, "values": [5.0, 4.0]
    }
    assert (model / "metrics.jsonl").read_bytes() == rows
    # That of before is kept for ever, whole.
    assert [(one.step, one.why) for one in listed(model)] == [(AT, "layers")]
    assert load_model(listed(model)[0].path)[0].layers == 2
    said = dict(table(describe(model)))
    assert said["before"] == f"layers were added: step {AT}"
    assert f"layers 4 from step {AT + 1} on" in [t for _, t in table(describe(model))]


def test_new_layers_follow_from_seed_and_number_alone(model: Path, tmp_path: Path) -> None:
    """In one step or in two, the same layers; none is like another."""
    once = load_model(grown(Path(shutil.copytree(model, tmp_path / "once")), 4))[2]
    twice = load_model(grown(grown(model, 3), 4))[2]
    assert all((once[n] == twice[n]).all() for n in once)
    a, b = (once[f"model.layers.{i}.mlp.up_proj.weight"] for i in (2, 3))
    assert (a != b).any() and abs(float(a.std()) - 0.02) < 0.002


@pytest.mark.parametrize("kind", ["full", "sampled", "bf16"])
def test_they_learn_and_every_way_to_add_them_gives_the_same_bits(
    kind: str, text: Path, tmp_path: Path
) -> None:
    """On resuming, in a training that runs, replayed, and resumed in between."""
    if kind == "bf16" and not make_team(1).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    options = {"full": {}, "sampled": {"loss": "sampled", "samples": 50}, "bf16":
               {"precision": "bf16"}}[kind]  # fmt: skip
    out = stopped(text, tmp_path / "m", **options)
    with pytest.raises(Interrupted):
        said = {"out": out, "resume": True, "threads": 2}
        crystalline.train(**said, layers=3, on_event=stop_at(AT + 4))
    first = load_model(out)[2]
    for name in new_ones(first):
        # What began at zero has learnt; what has a gradient only since then has moved as well.
        assert first[name].any()
        assert load_training(out)[0]["m." + name].any(), name
    crystalline.train(out=out, resume=True, threads=1)
    commands = load_training(out)[1]["commands"]

    live = tmp_path / "live"
    with training(text, live, **TINY, steps=STEPS, threads=2, **options) as trainer:
        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "step" and event["step"] == AT:
                trainer.node.set(layers=3)  # type: ignore[union-attr]

        trainer.on_event = on_event
        trainer.start().wait()
    assert fingerprint(live) == fingerprint(out)
    assert [one.why for one in listed(live)] == ["layers"]

    again = tmp_path / "again"
    with training(text, again, **TINY, steps=STEPS, threads=1, **options) as trainer:
        trainer.start(replay=commands).wait()
    assert fingerprint(again) == fingerprint(out)


def test_a_deeper_model_gets_better(model: Path) -> None:
    events: list[dict[str, Any]] = []
    crystalline.train(out=model, resume=True, layers=5, steps=80, threads=1,
                      on_event=events.append)  # fmt: skip
    losses = [e["loss"] for e in events if e["event"] == "step"]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_others_see_the_new_size(text: Path, tmp_path: Path) -> None:
    def body(trainer: Trainer, node: Any, _: Any) -> None:
        eventually(lambda: trainer.progress.step > 2)
        node.set(layers=3)
        eventually(lambda: load_model(tmp_path / "m")[0].layers == 3)
        assert load_live(tmp_path / "m", 1)[0].config.layers == 3

    trains(text, tmp_path / "m", body)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 1}, "layers is 1, but the model has 2: layers can be added and never removed"),
        ({"heads": 2}, "heads cannot change when resuming: what was learnt is laid out for it"),
        ({"kv_heads": 1}, "kv_heads cannot change when resuming: what was learnt is laid out"),
        ({"dim": 48}, "dim cannot change when resuming: what was learnt is laid out for it"),
        ({"hidden": 64}, "hidden cannot change when resuming: what was learnt is laid out for it"),
        ({"vocab_size": 400}, "vocab_size cannot change when resuming: every token has a row"),
        ({"seed": 3}, "seed cannot change when resuming: the order of the text follows from it"),
        ({"layers": 9999, "batch_size": 10**6}, "choose a smaller"),
        ({"layers": 10**6}, "layers is 1000000, but must be a whole number from 1 to 10000"),
    ],
)
def test_what_is_refused_changes_nothing(
    change: dict[str, Any], says: str, model: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in model.rglob("*") if p.name != "training.lock"}
    with pytest.raises(UsageError, match=says) as refused:
        crystalline.train(out=model, resume=True, **change)
    assert "\n" not in str(refused.value)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not (model / "checkpoints").exists()


def test_where_the_one_before_cannot_be_kept_none_is_added(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(*args: Any) -> None:
        raise CheckpointError("no room to keep it")

    monkeypatch.setattr(kept, "keep", keep)

    def body(trainer: Trainer, node: Any, _: Any) -> None:
        eventually(lambda: trainer.progress.step > 2)
        node.pause()
        weights = trainer.weights
        with pytest.raises(UsageError, match="no room to keep it"):
            node.set(layers=3)
        assert trainer.config.layers == 2 and trainer.weights is weights
        assert not [c for c in trainer.commands if c["command"] == "SET"]
        node.resume()

    trains(text, tmp_path / "m", body)
    assert load_model(tmp_path / "m")[0].layers == 2


def test_settings_said_when_resuming_are_recorded_and_replayed(
    text: Path, model: Path, tmp_path: Path
) -> None:
    said = {"lr": 1e-3, "batch_size": 7, "evaluation_interval": 5, "layers": 3}
    events: list[dict[str, Any]] = []
    crystalline.train(out=model, resume=True, threads=1, on_event=events.append, **said)
    assert [e["step"] for e in events if e["event"] == "validation"] == [10, 15, 16]
    state = load_training(model)[1]
    assert [c["values"] for c in state["commands"] if c["command"] == "SET"] == [
        [0.0, 1e-3], [1.0, 7.0], [3.0, 5.0], [5.0, 3.0]
    ]
    assert (state["recipe"]["lr"], state["recipe"]["batch_size"]) == (1e-3, 7)
    with training(text, tmp_path / "again", **TINY, steps=STEPS, threads=1) as trainer:
        trainer.start(replay=state["commands"]).wait()
    assert fingerprint(tmp_path / "again") == fingerprint(model)
    # Said again with more steps it stands; as it was at first, it is changed back.
    crystalline.train(out=model, resume=True, steps=17, threads=1, **said)
    assert len(load_training(model)[1]["commands"]) == len(state["commands"])
    crystalline.train(out=model, resume=True, steps=18, threads=1, batch_size=TINY["batch_size"])
    assert load_training(model)[1]["recipe"]["batch_size"] == TINY["batch_size"]


def test_a_change_is_saved_at_once(model: Path) -> None:
    """Killed before the next checkpoint, the training goes on as it was told."""
    with training(out=model, resume=True, lr=1e-3, patience=4, threads=1) as trainer:
        trainer.begin()
        trainer.close()
    recipe = load_training(model)[1]["recipe"]
    assert (recipe["lr"], recipe["patience"]) == (1e-3, 4)


def test_epochs_said_when_resuming(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    run(text, out, steps=None, epochs=0.5, threads=1)
    done = load_training(out)[1]["progress"]["step"]
    with pytest.raises(UsageError, match=r"epochs is 0\.2, but 0\.5\d are done; choose more"):
        crystalline.train(out=out, resume=True, epochs=0.2)
    crystalline.train(out=out, resume=True, epochs=1.0, threads=1)
    whole = tmp_path / "whole"
    run(text, whole, steps=None, epochs=1.0, threads=1)
    assert load_training(out)[1]["progress"]["step"] > done
    mine, theirs = (load_training(m)[1]["course"] for m in (out, whole))
    assert mine["progress"] == theirs["progress"] == 0.0 and mine["start"] == 0
    assert abs(mine["steps"] - theirs["steps"]) <= 1  # half an epoch may end in a smaller step
