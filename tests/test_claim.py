"""Whose folder it is: others' files stay, one training at a time, resuming takes only its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, prose

import crystalline
from crystalline.checkpoints.claim import MARK, claimed
from crystalline.data.reading import collect
from crystalline.errors import CheckpointError, ConfigError, NumericsError, UsageError
from crystalline.team import make_team


def run(paths: Any, out: Path, **options: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    crystalline.train(paths, out, on_event=events.append, **{**TINY, "steps": 3, **options})
    return events


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize("name", ["data/precious.bin", "config.json", "model.safetensors", "notes"])
def test_a_folder_with_other_files_is_left_alone(
    name: str, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    before = contents(out)
    with pytest.raises(UsageError, match="holds files that are not a model's; choose another out"):
        run(text_file, out)
    assert contents(out) == before


@pytest.mark.parametrize("out", ["", ".", "a\0b"])
def test_no_name_for_a_model_is_refused(out: str, text_file: Path) -> None:
    with pytest.raises(UsageError, match="name a folder for the model"):
        run(text_file, Path(out) if "\0" not in out else out)  # type: ignore[arg-type]


def test_a_second_training_in_the_folder_is_refused(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    run(text_file, out)
    with open(out / MARK) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another training runs there"):
            crystalline.train(out=out, resume=True, steps=5)
    crystalline.train(out=out, resume=True, steps=5)


def test_an_empty_folder_is_taken_and_given_back(tmp_path: Path) -> None:
    out = tmp_path / "m"
    with claimed(out):
        assert (out / MARK).exists()
    assert not out.exists()
    out.mkdir()
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError):
        run(tmp_path / "empty.txt", out)
    assert not out.exists() or not os.listdir(out)


def test_what_a_killed_training_left_is_taken_over(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    run(text_file, out)
    (out / "checksums.json").unlink()  # as before the first checkpoint was whole
    assert run(text_file, out)[-1]["event"] == "done"


def test_data_of_another_model_is_noticed(text_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(prose(4000, seed=5))
    run(text_file, tmp_path / "a")
    run(other, tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "data")
    shutil.copytree(tmp_path / "b" / "data", tmp_path / "a" / "data")
    with pytest.raises(CheckpointError, match="is not the text this model was trained on"):
        crystalline.train(out=tmp_path / "a", resume=True, steps=5)


def test_the_same_settings_may_be_said_again(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    held = tmp_path / "held.txt"
    held.write_text(prose(300, seed=3))
    said = {**TINY, "val": [str(held)], "lr": 1e-3, "epochs": 0.1}
    crystalline.train(text_file, out, **said)
    with pytest.raises(UsageError, match="training is finished"):
        crystalline.train(text_file, out, resume=True, **said)
    crystalline.train(text_file, out, resume=True, **said | {"epochs": None, "steps": 40})
    with pytest.raises(UsageError, match="seed cannot change"):
        crystalline.train(text_file, out, resume=True, **said | {"seed": 2})


def test_models_are_not_training_text(text_folder: Path) -> None:
    before = len(collect(text_folder)[0])
    run(text_folder, text_folder / "models" / "a")
    sources, skipped = collect(text_folder)
    assert len(sources) == before
    assert any("a model's folder" in s.reason for s in skipped)


def test_the_steps_before_an_error_are_in_the_metrics(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crystalline.optimizers import AdamW

    real = AdamW.step

    def until_five(self: AdamW, *args: Any) -> float:
        return real(self, *args) if self.t < 5 else float("nan")

    monkeypatch.setattr(AdamW, "step", until_five)
    with pytest.raises(NumericsError, match="at step 6"):
        run(text_file, tmp_path / "m", steps=20)
    rows = [json.loads(r) for r in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["event"] == "step"] == [1, 2, 3, 4, 5]


def test_a_model_works_in_a_child_forked_while_it_was_at_work(
    text_file: Path, tmp_path: Path
) -> None:
    run(text_file, tmp_path / "m")
    model = crystalline.load(tmp_path / "m", threads=2)
    want, stop = model.logits([1, 2, 3]).tobytes(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            model.logits([1, 2, 3])

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0 if model.logits([1, 2, 3]).tobytes() == want else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        worker.join(30)


def test_a_child_forked_in_a_training_does_not_keep_its_folder(
    text_file: Path, tmp_path: Path
) -> None:
    children: list[int] = []

    def fork_once(event: dict[str, Any]) -> None:
        if event["event"] == "step" and not children:
            children.append(os.fork())
            if children[0] == 0:
                signal.pause()

    crystalline.train(text_file, tmp_path / "m", on_event=fork_once, **TINY, steps=3)
    try:
        crystalline.train(out=tmp_path / "m", resume=True, steps=4)
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


def test_extreme_values(text_file: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    run(text_file, tmp_path / "m")
    model = crystalline.load(tmp_path / "m")
    cold = model.generate("the", max_tokens=5, temperature=1e-50)
    assert cold == model.generate("the", max_tokens=5, temperature=0)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
    for threads in (0, 4097, 2**40):
        with pytest.raises(UsageError, match="must be 1 to 4096"):
            make_team(threads)
    with pytest.raises(ConfigError, match="brings its own vocabulary"):
        run(text_file, tmp_path / "n", tokenizer=str(tmp_path / "m"))


def test_long_runs_of_white_space_are_learnt_quickly(tmp_path: Path) -> None:
    """Cut like long words: the time grows with the square of a run's length otherwise."""
    path = tmp_path / "white.txt"
    path.write_text("a" + "\u3000" * 200_000 + "b" + " " * 200_000)
    assert run(path, tmp_path / "m")[-1]["event"] == "done"
    model = crystalline.load(tmp_path / "m")
    assert np.isfinite(model.loss(model.tokenizer.encode("a \u3000 b")))


def test_a_forked_child_does_not_keep_a_folder(tmp_path: Path) -> None:
    out, (wait, wake) = tmp_path / "m", os.pipe()
    with claimed(out):
        (out / "something").touch()
        child = os.fork()
        if child == 0:
            os.close(wake)
            os.read(wait, 1)
            os._exit(0)
    try:
        with claimed(out):
            pass
    finally:
        os.close(wake)
        os.close(wait)
        os.waitpid(child, 0)
