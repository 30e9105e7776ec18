"""Training with every optimizer, schedule and average: bits, exact resuming, what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, prose
from test_training import fingerprint, run, stop_at

import crystalline
from crystalline.checkpoints.checkpoint import load_model, load_training, save_model
from crystalline.config import OPTIMIZERS, SCHEDULES, ModelConfig
from crystalline.decoder.decoder import Decoder, Parameters, group_order, initialise
from crystalline.errors import ConfigError, Interrupted, UsageError
from crystalline.forecast.memory import blocks
from crystalline.optimizers import make_optimizer
from crystalline.team import make_team
from crystalline.training.plan import Recipe

STEPS = 8
KINDS: dict[str, dict[str, Any]] = {name: {"optimizer": name} for name in OPTIMIZERS}
KINDS |= {f"{name}, sampled": {**KINDS[name], "loss": "sampled", "samples": 40} for name in KINDS}
KINDS |= {
    "adamw, average": {"ema": 0.9},
    "muon, sampled, average": {**KINDS["muon, sampled"], "ema": 0.9},
    "lion, wsd, three batches": {
        "optimizer": "lion", "schedule": "wsd", "decay": 0.5, "accumulate": 3,
        "embedding_decay": 0.01, "norm_decay": 0.02, "clip": 0.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(prose(2000))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_it_ends_in_the_same_bits(
    kind: str, text: Path, tmp_path: Path
) -> None:
    options = KINDS[kind] | {"steps": STEPS}
    run(text, tmp_path / "whole", threads=2, **options)
    whole = fingerprint(tmp_path / "whole")
    run(text, tmp_path / "one", threads=1, **options)
    assert fingerprint(tmp_path / "one") == whole
    for step in (1, 5):
        out = tmp_path / f"stopped{step}"
        with pytest.raises(Interrupted, match=f"after step {step} of"):
            crystalline.train(text, out, threads=1, on_event=stop_at(step), **TINY | options)
        crystalline.train(out=out, resume=True, threads=2)
        assert fingerprint(out) == whole, step


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind: str, text: Path, tmp_path: Path) -> None:
    options = KINDS[kind] | {"steps": 60}
    if kind.startswith("lion"):
        options |= {"lr": 1e-3}
    losses = [e["loss"] for e in run(text, tmp_path / "m", **options) if e["event"] == "step"]
    assert np.mean(losses[-5:]) < 0.85 * losses[0]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_schedule_is_followed(kind: str, text: Path, tmp_path: Path) -> None:
    options = {"warmup": 0.25, "schedule": kind, "lr": 1e-3}
    if kind == "wsd":
        options["decay"] = 0.5
    if kind != "constant":
        options["floor"] = 0.1
    events = run(text, tmp_path / "m", steps=8, **options)
    rates = [e["lr"] for e in events if e["event"] == "step"]
    assert rates[:2] == pytest.approx([5e-4, 1e-3])
    assert rates[-1] == pytest.approx(1e-3 if kind == "constant" else 1e-4)
    assert (rates[3] == pytest.approx(1e-3)) == (kind in ("constant", "wsd"))


# --- The average of the weights.


def test_the_average_is_validated_and_exported_and_the_weights_go_on(
    text: Path, tmp_path: Path
) -> None:
    plain = run(text, tmp_path / "plain", steps=STEPS)
    events = run(text, tmp_path / "m", steps=STEPS, ema=0.9)
    losses = [[e["loss"] for e in of if e["event"] == "step"] for of in (plain, events)]
    assert losses[0] == losses[1], "averaging changes no step"
    exported = load_model(tmp_path / "m")[2]
    kept = load_training(tmp_path / "m")[0]
    for name, w in load_model(tmp_path / "plain")[2].items():
        assert np.array_equal(kept["w." + name], w)
        assert not np.array_equal(exported[name], w)
    # What is validated is what is exported: as its own, and as the best of the last step.
    told = [e for e in events if e["event"] == "validation"][-1]
    model = crystalline.load(tmp_path / "m")
    document = text.read_text()
    ids = model.tokenizer.encode(document[int(0.9 * len(document)) :])
    ids = [model.tokenizer.eot, *ids, model.tokenizer.eot]
    total = 0.0
    for a in range(0, len(ids) - 1, TINY["seq_len"]):
        b = min(a + TINY["seq_len"], len(ids) - 1)
        z = model.logits(ids[a:b]).astype(np.float64)
        z -= z.max(1, keepdims=True)
        logp = z - np.log(np.exp(z).sum(1, keepdims=True))
        total -= logp[np.arange(b - a), ids[a + 1 : b + 1]].sum()
    assert told["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert told["best"] == told["loss"] and events[-1]["best_step"] == STEPS
    best = load_model(tmp_path / "m" / "best")[2]
    assert all(np.array_equal(best[n], w) for n, w in exported.items())


# --- Checkpoints of before there was a choice.


def test_an_older_checkpoint_resumes_with_adamw(text: Path, tmp_path: Path) -> None:
    run(text, tmp_path / "whole", steps=STEPS)
    out = tmp_path / "m"
    with pytest.raises(Interrupted):
        crystalline.train(text, out, on_event=stop_at(4), **TINY, steps=STEPS)
    (tensors, state), (config, tokenizer, weights) = load_training(out), load_model(out)
    new = {f.name for f in Recipe.__dataclass_fields__.values()} - {
        "batch_size", "accumulate", "lr", "seed", "warmup", "floor", "weight_decay", "loss",
        "samples", "precision",
    }  # fmt: skip
    assert new <= state["recipe"].keys()
    state["recipe"] = {n: v for n, v in state["recipe"].items() if n not in new}
    assert {name[:2] for name in tensors} == {"m.", "v."}
    save_model(out, config, tokenizer, weights, optimizer=tensors, state=state)
    crystalline.train(out=out, resume=True)
    assert fingerprint(out) == fingerprint(tmp_path / "whole")


def test_what_cannot_change_when_resuming_is_refused(text: Path, tmp_path: Path) -> None:
    run(text, tmp_path / "m", steps=3)
    for change in ({"optimizer": "muon"}, {"schedule": "wsd"}, {"ema": 0.9}, {"clip": 2.0}):
        (name,) = change
        with pytest.raises(UsageError, match=f"{name} cannot change when resuming"):
            crystalline.train(out=tmp_path / "m", resume=True, steps=5, **change)
    crystalline.train(out=tmp_path / "m", resume=True, steps=5, optimizer="adamw", clip=1.0)


# --- What is said, and what it takes.


def test_the_plan_names_what_was_chosen(text: Path, tmp_path: Path) -> None:
    chosen = {}
    for name in OPTIMIZERS:
        events = run(text, tmp_path / name, steps=1, optimizer=name)
        chosen[name] = next(e for e in events if e["event"] == "plan")
        assert chosen[name]["optimizer"] == name and chosen[name]["schedule"] == "cosine"
    lost = {name: plan["lr"] * plan["weight_decay"] for name, plan in chosen.items()}
    one = lost["adamw"]
    assert lost == pytest.approx({"adamw": one, "muon": 3 * one, "lion": one, "sgd": one})
    state = json.loads((tmp_path / "muon" / "training_state.json").read_text())
    assert state["recipe"]["optimizer"] == "muon"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "moun"}, "optimizer is 'moun', but must be one of .*; choose muon"),
        ({"schedule": "cosin"}, "schedule is 'cosin', but must be one of .*; choose cosine"),
        ({"warmup": 1.0}, r"warmup is 1.0, but must be a number from 0 to 0.9; choose 0.05"),
        ({"floor": -0.1}, "floor is -0.1, but must be a number from 0 to 1; choose 0.02"),
        ({"decay": 0.0}, "decay is 0.0, but must be a number from 0.01 to 1; choose 0.2"),
        ({"clip": -1.0}, "clip is -1.0, but must be a number from 0 .*; choose 1"),
        ({"ema": 1.0}, "ema is 1.0, but must be a number from 0 to 0.999999; choose 0.999"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0, but must be a number .*; choose 0.1"),
        ({"embedding_decay": "x"}, "embedding_decay is 'x', but must be a number; choose 0.1"),
        ({"norm_decay": 101.0}, "norm_decay is 101.0, but must be a number .*; choose 0.1"),
        ({"decay": 0.3}, "decay is 0.3, but schedule is cosine, .*; choose schedule wsd"),
        (
            {"floor": 0.3, "schedule": "constant"},
            "floor is 0.3, but schedule is constant, which does not fall; choose another schedule",
        ),
        (
            {"decay": 0.9, "schedule": "wsd", "warmup": 0.2},
            "decay is 0.9, but warmup is 0.2, .*; choose 0.4",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    options: dict[str, Any], words: str, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        run(text, tmp_path / "m", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_memory_is_counted_and_a_step_allocates_no_work_space() -> None:
    B, T = 13, 24
    c = ModelConfig(300, 40, 2, 4, 2, 4000, T)
    team, weights, gradients = make_team(2), Parameters(c), Parameters(c)
    initialise(weights, 0)
    decoder = Decoder(weights, team, B, T, gradients)
    shared = {"weight_decay": 0.1, "embedding_decay": None, "norm_decay": 0.0, "clip": 1.0}
    optimizer = make_optimizer("muon", weights, team, **shared)
    ids = np.full((B, T), 7, np.int32)
    sizes = (T, c.dim, c.heads, c.kv_heads, c.hidden, c.vocab_size)
    forecast = team.work_floats(group_order(B)[1] * T, *sizes, 0, True)
    assert forecast > team.work_floats(group_order(B)[1] * T, *sizes)
    for _ in range(2):
        decoder.gradient(ids, ids, 1.0, False)
        optimizer.step(gradients, 1e-3)
        assert team.work_bytes == 4 * forecast

    def need(**kind: object) -> int:
        recipe = Recipe(B, 1, 1e-3, 0, **kind)  # type: ignore[arg-type]
        return sum(sum(sizes) for sizes in blocks(c, recipe, team).values())

    size = weights.flat.size
    assert need() - need(optimizer="lion") == size
    assert need(optimizer="lion") == need(optimizer="sgd")
    assert need(ema=0.9) - need() == size
