"""The lattice in whole trainings: said in three ways, kept, resumed, refused where it must be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
from command import SMALL, invoke
from conftest import TINY, prose
from test_training import fingerprint, run, stop_at

import crystalline
from crystalline._native import Team, available_isas
from crystalline.checkpoints.checkpoint import load_model, load_training
from crystalline.config import LAMBDA_CORRECTION, ModelConfig, TrainConfig
from crystalline.decoder.decoder import Decoder, Parameters
from crystalline.errors import ConfigError, Interrupted, UsageError
from crystalline.forecast import choice
from crystalline.formats.convert import export_model, import_model
from crystalline.progress import planned
from crystalline.spheres import stats
from crystalline.spheres.driver import Command
from crystalline.training import plan
from crystalline.training.plan import Budget, choose_model, choose_recipe

ALL: dict[str, Any] = {"init": "lattice", "rope": "lattice", "lambda_correction": "on"}
STEPS = 12
CONFIG = ModelConfig(300, 40, 2, 4, 2, 52, 24, rope="lattice")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lattice") / "prose.txt"
    path.write_text(prose(4000))
    return path


@pytest.fixture(autouse=True)
def low_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of 300 has ids on both sides of this one."""
    monkeypatch.setattr(stats, "BOUNDARY_ID", 270)


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "BOUNDARY_ID", 270)
        out = tmp_path_factory.mktemp("whole") / "m"
        run(text, out, steps=STEPS, threads=1, **ALL)
    return out


# --- the configuration ----------------------------------------------------------------------------


def test_what_is_not_said_is_one_constant_each(monkeypatch: pytest.MonkeyPatch) -> None:
    said = TrainConfig(steps=3, dim=64)

    def chosen(said: TrainConfig) -> tuple[str, float, str]:
        budget = Budget(said, 10_000)
        c = choose_model(budget, 300)
        recipe = choose_recipe(budget, c)
        return recipe.init, recipe.lambda_correction, c.rope

    assert chosen(said) == ("normal", 0.0, "standard")
    monkeypatch.setattr(plan, "DEFAULT_INIT", "lattice")
    monkeypatch.setattr(plan, "DEFAULT_LAMBDA_CORRECTION", 0.25)
    monkeypatch.setattr(plan, "DEFAULT_ROPE", "lattice")
    assert chosen(said) == ("lattice", 0.25, "lattice")
    off = replace(said, init="normal", rope="standard", lambda_correction=0)
    assert chosen(off) == ("normal", 0.0, "standard")


def test_on_is_three_144000ths() -> None:
    assert TrainConfig(lambda_correction="on").lambda_correction == 3 / 144000
    assert LAMBDA_CORRECTION == 3 / 144000
    assert TrainConfig(lambda_correction=0).lambda_correction == 0.0


def test_config_json_says_that_it_is_no_llama() -> None:
    d = json.loads(json.dumps(CONFIG.to_hf(7)))
    assert (d["model_type"], d["architectures"]) == ("crystalline", ["CrystallineForCausalLM"])
    assert ModelConfig.from_hf(d, "config.json") == CONFIG
    plain = replace(CONFIG, rope="standard").to_hf(7)
    assert plain["model_type"] == "llama" and "rope" not in plain
    for rope in (None, "latice", 3):
        with pytest.raises(ConfigError, match=r"^m: rope is .*, but must be one of standard, lat"):
            ModelConfig.from_hf(d | {"rope": rope}, "m")
    with pytest.raises(ConfigError, match="rope is 'lattice', but the lattice's frequencies"):
        ModelConfig.from_hf(d | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "m")


def test_transformers_refuses_it(whole: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="crystalline"):
        transformers.AutoModelForCausalLM.from_pretrained(whole)


# --- the same bits --------------------------------------------------------------------------------


def test_same_bits_on_any_threads_and_instruction_set(
    text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isa in available_isas():
        monkeypatch.setenv("CRYSTALLINE_ISA", isa)
        for threads in (2, 5):
            out = tmp_path / f"{isa}-{threads}"
            run(text, out, steps=STEPS, threads=threads, **ALL)
            assert fingerprint(out) == fingerprint(whole)


def test_the_command_line_and_a_file_say_the_same(text: Path, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        'init = "lattice"\nrope = "lattice"\nlambda_correction = "on"\nboundary_counters = false\n'
    )
    two = ["--init", "lattice", "--rope", "lattice", "--lambda-correction"]
    said = [[*two, "on", "--no-boundary-counters"], ["--config", tmp_path / "t.toml"],
            [*two, 3 / 144000]]  # fmt: skip
    for i, options in enumerate(said):
        out = tmp_path / str(i)
        events = invoke("train", text, "--out", out, *SMALL, "--steps", 4, "--json", *options)
        found = {e["event"]: e for e in map(json.loads, events.splitlines())}
        assert found["plan"]["init"] == found["plan"]["rope"] == "lattice"
        assert found["plan"]["lambda_correction"] == 3 / 144000
        crossed = sum(row["crossings"] for row in found["done"]["spheres"])
        assert (crossed > 0) == (i == 2) == found["plan"]["boundary_counters"]
    assert len({fingerprint(tmp_path / str(i)) for i in range(3)}) == 1


def test_the_plan_tells_of_it(text: Path, tmp_path: Path) -> None:
    said: dict[str, Any]
    for said, end in ((ALL, ", lattice init, lattice rope, lambda 2.08e-05"), ({}, "seed 0")):
        events = run(text, tmp_path / end, steps=1, threads=1, **said)
        plan = next(e for e in events if e["event"] == "plan")
        assert dict(planned(plan))["training"].endswith(end)


def test_info_tells_of_it(whole: Path) -> None:
    shown = " ".join(invoke("info", whole).split())
    assert "feed-forward 52, lattice rope" in shown
    assert "seed 0, lattice init, lambda 2.08e-05" in shown


def test_each_changes_what_is_learnt_and_off_is_as_not_said(text: Path, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "nothing": {}, "init": {"init": "lattice"}, "rope": {"rope": "lattice"},
        "lambda": {"lambda_correction": "on"}, "counters": {"boundary_counters": False},
        "off": {"init": "normal", "rope": "standard", "lambda_correction": 0},
    }  # fmt: skip
    found = {}
    for name, said in kinds.items():
        run(text, tmp_path / name, steps=4, threads=1, **said)
        found[name] = fingerprint(tmp_path / name)
    assert found["nothing"] == found["off"] == found["counters"]
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("bad", ["of", "nan", "0.6", "-1"])
def test_a_wrong_correction_is_refused_in_one_line(bad: str, text: Path, tmp_path: Path) -> None:
    from command import run as command

    code, _, err = command(
        "train", text, "--out", tmp_path / "m", "--lambda-correction", bad, "--steps", 1
    )
    assert code != 0 and err.count("\n") == 1 and "lambda_correction is " in err
    assert "must be a number from 0 to 0.5" in err


def test_a_time_chooses_a_size_with_the_positions_that_were_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = Budget(TrainConfig(minutes=1, rope="lattice"), 10**7, 5.0)
    monkeypatch.setattr(choice, "TRY_SECONDS", 0.01)
    monkeypatch.setattr(choice, "machine_flops", lambda team, precision: 1e9)
    assert choice.choose(budget, 300, Team(1)).config.rope == "lattice"


# --- kept, resumed, refused -----------------------------------------------------------------------


def test_it_resumes_to_the_same_bits_and_counts(text: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    with pytest.raises(Interrupted):
        said = {**TINY, **ALL, "steps": STEPS, "threads": 1}
        crystalline.train(text, out, on_event=stop_at(5), **said)
    halfway = load_training(out)[1]["progress"]["crossings"]
    crystalline.train(out=out, resume=True, threads=2)
    assert fingerprint(out) == fingerprint(whole)
    state, want = load_training(out)[1], load_training(whole)[1]
    assert state["progress"]["crossings"] == want["progress"]["crossings"]
    assert 0 < sum(halfway) < sum(want["progress"]["crossings"])
    recipe, config = state["recipe"], load_model(out)[0]
    assert (recipe["init"], recipe["lambda_correction"]) == ("lattice", 3 / 144000)
    assert recipe["boundary_counters"] and config.rope == "lattice"


def test_what_cannot_change_when_resuming_is_refused(whole: Path) -> None:
    before = fingerprint(whole)
    changes = {"init": "normal", "rope": "standard", "lambda_correction": 0.0,
               "boundary_counters": False}  # fmt: skip
    for name, value in changes.items():
        with pytest.raises(UsageError, match=f"{name} cannot change when resuming: "):
            crystalline.train(out=whole, resume=True, steps=99, **{name: value})
    with pytest.raises(UsageError, match="training is finished"):  # the same again is no change
        crystalline.train(out=whole, resume=True, **ALL, boundary_counters=True)
    assert fingerprint(whole) == before


def test_layers_that_are_added_have_the_same_positions(text: Path, tmp_path: Path) -> None:
    run(text, tmp_path / "m", steps=3, threads=1, **ALL)
    before = crystalline.load(tmp_path / "m").logits(range(20))
    deeper = {"layers": 3, "steps": 4, "lr": 1e-9, "threads": 1}
    crystalline.train(out=tmp_path / "m", resume=True, **deeper)
    assert load_model(tmp_path / "m")[0].rope == "lattice"
    after = crystalline.load(tmp_path / "m").logits(range(20))
    assert np.abs(after - before).max() < 1e-5
    commands = [Command(**c) for c in load_training(tmp_path / "m")[1]["commands"]]
    assert commands


def test_a_training_begins_from_weights_with_their_own_positions(
    text: Path, whole: Path, tmp_path: Path
) -> None:
    short = {"steps": 1, "threads": 1, "batch_size": 2}
    for said, message in (
        ({"rope": "standard"}, "rope is standard, but the weights of .* have lattice, which"),
        ({"init": "lattice"}, "init is 'lattice', but training begins from the weights of"),
    ):
        with pytest.raises(ConfigError, match=message):
            crystalline.train(text, tmp_path / "m", start_from=whole, **short, **said)
    crystalline.train(text, tmp_path / "m", start_from=whole, rope="lattice", **short)
    assert load_model(tmp_path / "m")[0].rope == "lattice"
    assert load_training(tmp_path / "m")[1]["recipe"]["init"] == "given"


@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_an_export_is_refused_with_the_reason(to: str, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has rope lattice, positions that neither GGUF nor"):
        export_model(whole, tmp_path / "there", to)
    assert not (tmp_path / "there").exists()


def test_a_folder_of_ours_is_imported_with_its_positions(whole: Path, tmp_path: Path) -> None:
    import_model(whole, tmp_path / "m")
    ours, theirs = (crystalline.load(at).logits(range(20)) for at in (whole, tmp_path / "m"))
    assert np.array_equal(ours, theirs)


# --- in use ---------------------------------------------------------------------------------------


def test_a_model_in_use_computes_what_the_reference_and_training_do(whole: Path) -> None:
    """At once, one token after the other from the cache, and by the loss of training."""
    config, _, tensors = load_model(whole)
    model, ids = crystalline.load(whole), np.arange(1, 24, dtype=np.int32)
    want = ref.decoder_logits(config, tensors, ids[None])[0]
    standard = ref.decoder_logits(replace(config, rope="standard"), tensors, ids[None])[0]
    got = model.logits(ids)
    assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()
    assert np.abs(got - standard).max() > 1e-4 * np.abs(want).max()
    weights = Parameters(config)
    weights.load(tensors)
    decoder = Decoder(weights, Team(2), 1, 22)
    assert model.loss(ids) == decoder.loss(ids[None, :-1], ids[None, 1:]) / 22


def test_generation_one_by_one_equals_prefill(whole: Path) -> None:
    model = crystalline.load(whole)
    prompt = model.tokenizer.encode("the quick").tolist()
    ids = list(prompt)
    for _ in range(10):
        ids.append(int(model.logits(ids)[-1].argmax()))
    text = model.generate("the quick", max_tokens=10, temperature=0)
    assert text == model.tokenizer.decode(ids[len(prompt) :])
