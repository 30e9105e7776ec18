"""Training that begins from weights: an imported model goes on learning, its context is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import invoke, run
from conftest import TINY, prose
from formats_cases import TINY as SMALL
from formats_cases import TOKENIZER, random_weights, write_gguf

import crystalline
from crystalline.checkpoints.checkpoint import load_model, load_training, save_model
from crystalline.errors import CheckpointError, ConfigError, UsageError
from crystalline.formats.convert import export_model, import_model

OPTIONS: dict[str, Any] = {"steps": 6, "threads": 1, "batch_size": 3}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(prose(2500))
    return path


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A model with rows in its vocabulary that no token has, and no training state."""
    write_gguf(tmp_path / "m.gguf", SMALL)
    import_model(tmp_path / "m.gguf", tmp_path / "m")
    return tmp_path / "m"


def events_of(*args: Any, **options: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    crystalline.train(*args, on_event=events.append, **options)
    return events


def only(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [e for e in events if e["event"] == kind]


def test_an_imported_model_goes_on_learning_in_its_folder(text: Path, imported: Path) -> None:
    before = load_model(imported)[2]
    events = events_of(text, imported, **OPTIONS)
    plan = only(events, "plan")[0]
    assert plan["begins_from"] == str(imported)
    assert (plan["seq_len"], plan["context"], plan["dim"]) == (24, 24, 40)
    results = only(events, "validation")
    assert results[0]["step"] == 0
    assert results[-1]["loss"] < results[0]["loss"]
    config, tokenizer, after = load_model(imported)
    assert config == SMALL
    assert tokenizer.eot == TOKENIZER.eot
    # Six steps of a low learning rate move no weight far.
    moved = max(np.abs(after[n] - before[n]).max() for n in before)
    assert 0 < moved < 0.01
    assert load_training(imported)[1]["progress"]["step"] == 6


def test_weights_of_another_model_are_begun_from_and_stay_as_they_are(
    text: Path, imported: Path, tmp_path: Path
) -> None:
    files = {p.name: p.read_bytes() for p in imported.iterdir() if p.is_file()}
    events = events_of(text, tmp_path / "new", start_from=imported, seq_len=16, **OPTIONS)
    plan = only(events, "plan")[0]
    assert (plan["begins_from"], plan["seq_len"], plan["context"]) == (str(imported), 16, 24)
    assert {p.name: p.read_bytes() for p in imported.iterdir() if p.is_file()} == files
    assert load_model(tmp_path / "new")[0] == SMALL  # 24 positions, whatever was trained with
    assert load_training(tmp_path / "new")[1]["recipe"]["seq_len"] == 16
    assert crystalline.load(tmp_path / "new").logits(np.arange(24)).shape == (24, 311)


def test_a_shorter_training_is_resumed_to_the_same_bits(
    text: Path, imported: Path, tmp_path: Path
) -> None:
    said = {"start_from": imported, "seq_len": 16} | OPTIONS
    crystalline.train(text, tmp_path / "whole", **said | {"steps": 8})
    with crystalline.api.training(text, tmp_path / "parts", **said | {"steps": 8}) as trainer:

        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "step" and event["step"] == 5:
                trainer.node.request_stop()

        trainer.on_event = stop
        trainer.start().wait()
    assert load_training(tmp_path / "parts")[1]["progress"]["step"] < 8
    events = events_of(None, tmp_path / "parts", resume=True, seq_len=16, threads=2)
    assert only(events, "plan")[0]["seq_len"] == 16
    files = [tmp_path / n / "model.safetensors" for n in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_long_context_is_trained_in_shorter_sequences(
    text: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "m", replace(SMALL, seq_len=8192), TOKENIZER, random_weights(SMALL))
    events = events_of(text, tmp_path / "m", steps=1, threads=1)
    plan = only(events, "plan")[0]
    assert (plan["seq_len"], plan["context"], plan["batch_size"]) == (512, 8192, 4)
    assert load_model(tmp_path / "m")[0].seq_len == 8192


def test_a_stretched_context_is_trained_with_its_own_positions(
    text: Path, tmp_path: Path
) -> None:
    """The loss that training sees is that of the model in use, which transformers agrees with."""
    from crystalline.decoder.scaling import RopeScaling

    config = replace(SMALL, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 12))
    save_model(tmp_path / "m", config, TOKENIZER, random_weights(config))
    ours = crystalline.load(tmp_path / "m", threads=1)
    ids = np.array(TOKENIZER.encode(prose(40))[:24])
    with crystalline.api.training(text, tmp_path / "m", steps=1, threads=1, batch_size=1) as t:
        inputs, targets = np.zeros((1, 24), np.int32), np.full((1, 24), -1, np.int32)
        inputs[0], targets[0, :23] = ids, ids[1:]
        assert t.decoder.loss(inputs, targets) / 23 == pytest.approx(ours.loss(ids), rel=1e-5)
        plain = replace(config, rope_scaling=None)
    save_model(tmp_path / "plain", plain, TOKENIZER, random_weights(plain))
    other = crystalline.load(tmp_path / "plain", threads=1).loss(ids)
    assert abs(other - ours.loss(ids)) > 1e-3


def test_the_learning_rate_is_lower_than_that_of_a_new_model(
    text: Path, imported: Path, tmp_path: Path
) -> None:
    sizes = TINY | {"steps": 1, "threads": 1, "dim": 40}
    new = only(events_of(text, tmp_path / "new", **sizes), "plan")[0]["lr"]
    learnt = only(events_of(text, imported, steps=1, threads=1), "plan")[0]["lr"]
    assert learnt == pytest.approx(0.1 * new)
    said = only(events_of(text, tmp_path / "b", start_from=tmp_path / "new", steps=1, lr=0.002,
                          threads=1), "plan")[0]["lr"]  # fmt: skip
    assert said == 0.002


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"dim": 64}, r"dim is 64, but the weights of .*/m have 40, which training cannot change; "
                      "choose 40, or leave it out"),
        ({"layers": 3}, "layers is 3, but the weights"),
        ({"heads": 2}, "heads is 2, but"),
        ({"kv_heads": 1}, "kv_heads is 1, but"),
        ({"hidden": 64}, "hidden is 64, but"),
        ({"vocab_size": 400}, "vocab_size is 400, but the weights of .*/m have 311"),
        ({"preset": "nano"}, "vocab_size is 65, but the weights"),
        ({"tokenizer": "t.json"}, "tokenizer is 't.json', but the weights"),
        ({"seq_len": 25}, "seq_len is 25, but the model of .*/m knows 24 positions; choose 24"),
        ({"start_from": "elsewhere"}, "start_from is 'elsewhere', but .*/m holds a model of its"),
    ],
)  # fmt: skip
def test_what_weights_decide_is_refused_with_the_reason(
    text: Path, imported: Path, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        crystalline.train(text, imported, **OPTIONS | said)
    assert not (imported / "data").exists()


@pytest.mark.parametrize("length", [{"minutes": 0.03}, {"epochs": 1}])
def test_any_length_of_training_may_be_said(
    text: Path, imported: Path, length: dict[str, float]
) -> None:
    events = events_of(text, imported, seq_len=12, threads=1, **length)
    assert only(events, "done")[0]["step"] >= 1
    if "epochs" in length:
        assert only(events, "step")[-1]["epoch"] == pytest.approx(1.0, abs=0.2)


def test_sizes_that_agree_may_be_said(text: Path, imported: Path) -> None:
    said = {"dim": 40, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 52, "vocab_size": 311,
            "seq_len": 24}  # fmt: skip
    crystalline.train(text, imported, **OPTIONS | said)


def test_what_holds_no_model_or_a_training_is_refused(
    text: Path, imported: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        crystalline.train(text, tmp_path / "out", start_from=tmp_path, **OPTIONS)
    with pytest.raises(CheckpointError, match="without resume, which begins from its weights"):
        crystalline.train(None, imported, resume=True)
    crystalline.train(text, imported, **OPTIONS)
    with pytest.raises(UsageError, match="holds a model already; use resume, or another out"):
        crystalline.train(text, imported, **OPTIONS)


def test_the_command_imports_trains_and_exports(text: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", SMALL)
    where = {"cwd": tmp_path}
    code, out, err = run("import", "m.gguf", "mine", **where)
    assert (code, out) == (0, "")
    assert "imported" in err and "context 24, vocabulary 311: models/mine" in err
    assert "trained from here" in run("info", "models/mine", **where)[1]
    code, _, err = run("train", text, "--out", "models/mine", "--steps", "2", "--threads", "1",
                       **where)  # fmt: skip
    assert code == 0
    assert "begins      from the weights of models/mine" in err
    code, _, err = run("train", text, "--out", "models/two", "--from", "models/mine", "--steps",
                       "1", "--seq-len", "12", "--threads", "1", **where)  # fmt: skip
    assert code == 0, err
    assert "context 24" in err and "x 12 tokens" in err
    code, out, err = run("export", "mine", "out.gguf", "--type", "f16", **where)
    assert (code, out) == (0, "")
    assert "exported" in err and "out.gguf" in err
    assert run("export", "models/two", "hf", "--to", "hf", "--quiet", **where) == (0, "", "")
    assert load_model(tmp_path / "hf")[0].seq_len == 24
    for command, message in (
        (("import", "m.gguf", "mine"), "holds a model already"),
        (("import", "no.gguf", "x"), "no.gguf: cannot be read"),
        (("export", "no", "x.gguf"), "models/no: no such folder"),
        (("export", "mine", "x.gguf", "--type", "q2"), "type is 'q2', but must be one of"),
        (("import", "m.gguf", "x", "--quiet", "--json"), "exclude each other"),
    ):
        code, out, err = run(*command, **where)
        assert code in (1, 2) and out == ""
        assert message in err and err.count("\n") == 1


def test_json_tells_every_event(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", SMALL)
    out = invoke("import", tmp_path / "m.gguf", tmp_path / "m", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1]["event"] == "imported"
    assert events[-1]["bytes_without_token"] == 0
    progress = only(events, "progress")
    assert progress[-1]["done"] == progress[-1]["total"] == 4 * events[-1]["parameters"]
    out = invoke("export", tmp_path / "m", tmp_path / "x.gguf", "--json")
    assert json.loads(out.splitlines()[-1])["event"] == "exported"


def test_models_lie_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", SMALL)
    monkeypatch.setenv("CRYSTALLINE_MODELS", str(tmp_path / "all"))
    invoke("import", tmp_path / "m.gguf", "one", "--quiet")
    invoke("export", "one", tmp_path / "x.gguf", "--quiet")
    assert load_model(tmp_path / "all" / "one")[0] == SMALL


def test_a_token_that_the_vocabulary_lacks_has_no_text(imported: Path) -> None:
    model = crystalline.load(imported, threads=1)
    text = model.generate("the", max_tokens=60, temperature=3.0, seed=1)
    assert isinstance(text, str)  # about four in a hundred of its tokens are such
    assert list(model._pieces(iter([5, 305, 6]))) == list(model._pieces(iter([5, 6])))


def test_an_export_of_a_trained_model_is_the_trained_model(
    text: Path, imported: Path, tmp_path: Path
) -> None:
    crystalline.train(text, imported, **OPTIONS)
    export_model(imported, tmp_path / "x.gguf")
    import_model(tmp_path / "x.gguf", tmp_path / "again")
    want, got = load_model(imported)[2], load_model(tmp_path / "again")[2]
    assert all(np.array_equal(want[n], got[n]) for n in want)
