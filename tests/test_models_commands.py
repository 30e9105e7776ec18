"""Models by their names: made, listed, renamed, copied, removed, each whole or not at all."""

from __future__ import annotations

import json
import os
import pty
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import LIMIT, SMALL, invoke, run, start

from crystalline.__main__ import main
from crystalline.checkpoints.claim import claimed
from crystalline.errors import StoreError, UsageError
from crystalline.options import train_config
from crystalline.store import Arrival, Store
from crystalline.store import models as models_module
from crystalline.store.models import create_model, is_model, model_names, resolve_model, trains

Fails = Callable[..., None]


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models, by the environment."""
    monkeypatch.setenv("CRYSTALLINE_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """A command that must fail with a code, in one line with some words."""

    def check(code: int, says: str, *args: Any) -> None:
        assert main([str(arg) for arg in args]) == code
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("crystalline: error: ") and says in err, err

    return check


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").write_text("some words, and some more words to learn from\n" * 40)
    words = ("--steps", "3", "--quiet", *SMALL)
    invoke("train", folder / "text", "--out", folder / "m", *words)
    return folder / "m"


@pytest.fixture
def trained(made: Path, models: Path) -> Path:
    """A trained model called mine."""
    return Path(shutil.copytree(made, models / "mine"))


def test_a_model_is_made_with_its_options(models: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("steps = 9\nlayers = 2\n")
    words = ("--dim", "32", "--layers", "1", "--val", "held.txt", "--no-pin",
             "--hierarchy-depth", "2", "--config", "c.toml")  # fmt: skip
    assert invoke("models", "create", "mine", *words) == f"{models / 'mine'}\n"
    with Store.open(models / "mine", read_only=True) as store:
        options = store.get("options")
    assert options == {
        "steps": 9, "dim": 32, "layers": 1, "val": [str(tmp_path / "held.txt")], "pin": False,
        "hierarchy_depth": 2,
    }  # fmt: skip
    said = train_config(options, "kept")  # as training takes them
    assert (said.dim, said.steps, said.pin) == (32, 9, False)
    assert sorted(os.listdir(models)) == ["mine"]


def test_every_option_of_training_can_be_said() -> None:
    from crystalline.commands.models import create
    from crystalline.commands.train import train

    mine, theirs = ({p.name for p in c.params} for c in (create, train))
    assert theirs - mine == {"paths", "out", "resume", "at", "watch", "flush", "quiet"}


def test_what_cannot_be_made(models: Path, fails: Fails) -> None:
    create_model("mine", {})
    fails(2, "mine: exists already; choose another name", "models", "create", "mine")
    fails(2, "layers is 0, but must be a whole", "models", "create", "new", "--layers", 0)
    for name in (".hidden", "", "..", "x/.y"):
        fails(2, "no name for a model", "models", "create", name)
    assert os.listdir(models) == ["mine"]


def test_list_and_show(trained: Path, models: Path, tmp_path: Path) -> None:
    create_model("new", {"dim": 32})
    (models / "no model").mkdir()
    with Store.open(trained, create=True) as store:
        store.add([Arrival("a", "/a"), Arrival("b", "/b")])
        store.run_ended(store.run_begun(0), 3, "done")
        store.note("learning_rate", 2, value=0.5)
    lines = invoke("models", "list").splitlines()
    assert lines[0].split() == ["name", "parameters", "step", "of", "bits/byte", "waiting", "size"]
    mine = lines[1].split()
    assert mine[0] == "mine" and mine[3:5] == ["3", "3"] and mine[6] == "2"
    assert lines[2].split()[:2] == ["new", "0"] and len(lines) == 3
    first, second = json.loads(invoke("models", "list", "--json"))
    assert first["parameters"] > 10_000
    assert (first["step"], first["queue"]["pending"]) == (3, 2)
    assert second["parameters"] is None and second["options"] == {"dim": 32}
    said = json.loads(invoke("models", "show", "mine", "--json"))
    assert said["runs"][0]["outcome"] == "done" and said["history"][-1]["said"] == {"value": 0.5}
    shown = invoke("models", "show", "mine")
    for words in ("step 3 of 3", "2 pending", "parameters: 1 layer, width 32", "done"):
        assert words in shown
    assert "none yet: it has not been trained" in invoke("models", "show", "new")
    assert invoke("models", "list", "--models-dir", tmp_path / "none").startswith("no models in")


def test_a_damaged_one_does_not_hide_the_others(models: Path) -> None:
    create_model("a", {})
    create_model("b", {})
    (models / "a" / "state.db").write_bytes(b"damaged" * 1000)
    out = invoke("models", "list")
    assert "not a database" in out and "\nb " in out
    invoke("models", "rename", "a", "c")
    invoke("models", "delete", "c", "--yes")
    assert model_names() == ["b"]


def test_names_and_paths(models: Path, tmp_path: Path, fails: Fails) -> None:
    create_model("mine", {})
    create_model(tmp_path / "else" / "where", {})
    assert resolve_model("mine") == models / "mine"
    assert resolve_model("mine", tmp_path / "models") == models / "mine"
    assert resolve_model("else/where") == Path("else/where")
    assert resolve_model("where", tmp_path / "else") == tmp_path / "else" / "where"
    assert model_names() == ["mine"] and model_names(tmp_path / "else") == ["where"]
    fails(2, "mnie: no such model; did you mean mine?", "models", "show", "mnie")
    fails(2, "zzz: no such model; the models in", "models", "show", "zzz")
    fails(2, "holds none; make one with crystalline models create", "models", "show", "zzz",
          "--models-dir", tmp_path / "none")  # fmt: skip
    for name in ("", "a\0b"):
        with pytest.raises(UsageError, match="no such model"):
            resolve_model(name)


def test_rename(trained: Path, models: Path, fails: Fails) -> None:
    before = sorted(os.listdir(trained))
    create_model("other", {})
    fails(2, "other: exists already", "models", "rename", "mine", "other")
    with Store.open(trained, create=True) as late:
        said = json.loads(invoke("models", "rename", "mine", "theirs", "--json"))
        assert said == {"folder": str(models / "theirs")}
        with pytest.raises(StoreError, match="renamed or deleted meanwhile; name it again"):
            late.add([Arrival("late", "-")])
    assert set(before) <= set(os.listdir(models / "theirs")) and not trained.exists()
    assert model_names() == ["other", "theirs"]
    invoke("models", "verify", "theirs")


def test_nothing_is_changed_while_it_trains(trained: Path, models: Path, fails: Fails) -> None:
    with claimed(trained):
        assert trains(trained)
        for words in (("rename", "mine", "b"), ("delete", "mine", "--yes")):
            fails(2, "mine: a training runs there; stop it first", "models", *words)
        assert json.loads(invoke("models", "list", "--json"))[0]["training"]
        assert " training" in invoke("models", "list").splitlines()[1]
        invoke("models", "copy", "mine", "copy")
    assert not trains(trained) and model_names() == ["copy", "mine"]


def test_delete(trained: Path, models: Path, fails: Fails, tmp_path: Path) -> None:
    create_model("other", {})
    fails(2, "for ever? Say --yes to do it", "models", "delete", "mine")
    fails(2, "no such model", "models", "delete", "mine", "zzz", "--yes")
    assert model_names() == ["mine", "other"]
    (models / "link").symlink_to(trained)
    fails(2, "link: is a link; delete", "models", "delete", "link", "--yes")
    (models / "link").unlink()
    invoke("models", "delete", "mine", "other", "--yes")
    assert os.listdir(models) == []


@pytest.mark.parametrize(("answer", "code", "left"), [(b"n\n", 130, ["mine"]), (b"y\n", 0, [])])
def test_delete_asks_on_a_terminal(models: Path, answer: bytes, code: int, left: list[str]) -> None:
    create_model("mine", {})
    ours, theirs = pty.openpty()
    process = start("models", "delete", "mine", stdin=theirs)
    os.write(ours, answer)
    _, err = process.communicate(timeout=LIMIT)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code and f"Remove {models / 'mine'} for ever? [y/N]" in err
    assert model_names() == left


def test_what_a_crash_left_is_removed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_model("mine", {})
    with monkeypatch.context() as patch:
        patch.setattr(models_module.shutil, "rmtree", lambda *_, **__: None)  # killed before it
        invoke("models", "delete", "mine", "--yes")
    (models / ".new-1-half").mkdir()
    busy = models / ".new-2-busy"
    busy.mkdir()
    assert len(os.listdir(models)) == 3 and model_names() == []
    with models_module.held(busy):  # another process makes it at this moment
        create_model("mine", {})
    assert sorted(os.listdir(models)) == [".new-2-busy", "mine"]


@pytest.mark.parametrize("words", [("create", "b"), ("copy", "a", "b")])
def test_what_fails_leaves_nothing(
    words: tuple[str, ...], models: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_model("a", {})

    def full(*_: Any) -> Iterator[None]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models_module, "_move", full)
    fails(1, "No space left on device; check the disk and permissions", "models", *words)
    assert os.listdir(models) == ["a"]


def test_the_command_runs_as_a_program(models: Path) -> None:
    code, out, err = run("models", "create", "mine")
    assert (code, err) == (0, "") and out.strip() == str(models / "mine")
    assert is_model(models / "mine")
