"""Everything that may go wrong: one line that says what to do, the right exit code, no traceback,
and what was there before still whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, invoke, run, weights

from crystalline.__main__ import main
from crystalline.data import reading as data
from crystalline.decoder.decoder import Decoder

STEPS = ["--steps", "3"]
Fails = Callable[..., None]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command in this process; it must fail with a code, in one line with some words."""

    def check(code: int, says: str | list[str], *args: Any) -> None:
        assert main([str(arg) for arg in args]) == code
        one_line(capsys.readouterr().err, says)

    return check


def one_line(err: str, says: str | list[str]) -> None:
    """Standard error holds one line, an error, with these words."""
    assert err.count("\n") == 1, err
    assert err.startswith("crystalline: error: ")
    for words in [says] if isinstance(says, str) else says:
        assert words in err


@pytest.fixture
def train(text_file: Path, tmp_path: Path, fails: Fails) -> Fails:
    """A training that must fail with a code and words, before anything is written."""

    def check(code: int, says: str | list[str], *args: Any) -> None:
        out = tmp_path / "m"
        fails(code, says, "train", text_file, "--out", out, "--quiet", *args)
        assert not out.exists()

    return check


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").write_text("some words, and some more words to learn from\n" * 40)
    invoke("train", folder / "text", "--out", folder / "m", *STEPS, "--quiet", *SMALL)
    return folder / "m"


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A trained model that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "model"))


# --- data -----------------------------------------------------------------------------------------


def test_a_missing_path(fails: Fails, tmp_path: Path) -> None:
    fails(2, "nowhere: no such file or folder; check", "train", tmp_path / "nowhere", "--quiet")
    fails(2, "no paths to train on; name a file or a folder", "train", "--quiet")


def test_a_missing_path_of_held_out_text(train: Fails, tmp_path: Path) -> None:
    train(2, "nowhere: no such file", "--val", tmp_path / "nowhere", *SMALL, *STEPS)


def test_an_empty_folder(fails: Fails, tmp_path: Path) -> None:
    fails(2, ["no files in it", "give text or source code"], "train", tmp_path, "--quiet")


def test_a_folder_of_images(fails: Fails, tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200))
    fails(2, ["5 binary", "0.png", "give text"], "train", tmp_path, "--quiet")


def test_files_that_the_kernel_will_not_have_read(fails: Fails, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fails(2, "pipe: cannot train on it, special file", "train", tmp_path / "pipe", "--quiet")
    fails(2, "unreadable: Input/output error", "train", "/proc/self/mem", "--quiet")


def test_a_file_without_permission(
    fails: Fails, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str, *args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(data, "open", refused, raising=False)  # root may read everything
    fails(2, "prose.txt: cannot train on it, unreadable: Permission denied",
          "train", text_file, "--quiet")  # fmt: skip


def test_a_latin_1_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("Süße Grüße aus dem Café. ".encode("latin-1") * 20)
    fails(2, "old.txt: cannot train on it, undecodable: not UTF-8, perhaps Latin-1; convert it "
             "with iconv -f latin1 -t utf-8", "train", tmp_path / "old.txt", "--quiet")  # fmt: skip


def test_a_name_that_would_break_the_line(fails: Fails, tmp_path: Path) -> None:
    fails(2, r"a\nb\x1b[2J: no such file", "train", tmp_path / "a\nb\x1b[2J", "--quiet")


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "says"), [
    ("--dim 33", "dim is 33, but must be even; choose 32"),
    ("--dim 0", "dim is 0, but must be a whole number from 2"),
    ("--dim 32 --heads 3", "heads is 3, but dim 32 must divide into"),
    ("--dim 32 --heads 4 --kv-heads 3", "kv_heads is 3, but heads 4 must be a multiple of it"),
    ("--layers 0", "layers is 0"),
    ("--layers 20000", "layers is 20000, but must be a whole number from 1 to 10000"),
    ("--hidden 0", "hidden is 0"),
    ("--seq-len 0", "seq_len is 0"),
    ("--vocab-size 256", "vocab_size is 256, but must be a whole number from 257"),
    ("--batch-size 0", "batch_size is 0"),
    ("--accumulate 0", "accumulate is 0"),
    ("--lr 0", "lr is 0"),
    ("--lr nan", "lr is nan"),
    ("--seed -1", "seed is -1"),
    ("--threads 0", "threads is 0"),
    ("--threads 5000", "threads is 5000"),
    ("--minutes 0", "minutes is 0"),
    ("--epochs -1", "epochs is -1"),
    ("--minutes 1 --epochs 1", "epochs is 1.0, but minutes is given too"),
    ("--preset huge", "'huge' is not one of 'seed', 'nano', 'm'. See crystalline train --help"),
    ("--steps many", "'many' is not a valid integer. See crystalline train --help"),
    ("--stepz 3", "No such option"),
    ("--json", "--quiet and --json exclude each other"),
    ("--config nowhere.toml", "nowhere.toml: cannot be read"),
    ("--tokenizer nowhere", "nowhere: cannot be read"),
    ("--tokenizer /proc/version", "/proc/version: no tokenizer.json"),
])  # fmt: skip
def test_a_setting_that_does_not_fit(train: Fails, args: str, says: str) -> None:
    train(2, says, *args.split())


@pytest.mark.parametrize(("toml", "says"), [
    ("epoch = 3", "c.toml: unknown option 'epoch'; did you mean epochs?"),
    ("dim = 'wide'", "c.toml: dim is 'wide', but must be a whole number"),
    ("dim = = 3", "c.toml: not valid TOML"),
    ("loss = 'sample'", "c.toml: loss is 'sample', but must be one of full, sampled; choose"),
    ("samples = 40", "samples is 40, but loss is full; choose loss sampled"),
    ("packing = 3", "c.toml: packing is 3, but must be true or false; choose true"),
])  # fmt: skip
def test_a_file_of_settings_that_does_not_fit(
    train: Fails, tmp_path: Path, toml: str, says: str
) -> None:
    (tmp_path / "c.toml").write_text(toml)
    train(2, says, "--config", tmp_path / "c.toml")


@pytest.mark.parametrize("args", [
    "--dim 65536 --layers 100", "--batch-size 2147483647", "--seq-len 2147483647",
    "--hidden 2147483647", "--preset m --batch-size 1000000", "--dim 65536 --layers 10000",
])  # fmt: skip
def test_more_memory_than_the_machine_has(train: Fails, args: str) -> None:
    train(2, ["MiB are available; choose what fits: "], *args.split())


def test_a_vocabulary_beyond_the_text_takes_no_memory(tmp_path: Path, text_file: Path) -> None:
    invoke("train", text_file, "--out", tmp_path / "m", "--quiet", *SMALL, *STEPS,
           "--vocab-size", 2**31 - 1)  # fmt: skip
    assert json.loads(invoke("info", tmp_path / "m", "--json"))["vocabulary"] < 3000


def test_where_no_folder_can_be(fails: Fails, text_file: Path) -> None:
    fails(2, "cannot keep a model there (Not a directory); choose another out",
          "train", text_file, "--out", text_file / "m", "--quiet", *SMALL, *STEPS)  # fmt: skip


def test_what_resume_refuses(fails: Fails, model: Path, tmp_path: Path) -> None:
    before = weights(model)
    fails(2, "holds a model already; use resume", "train", model, "--out", model, "--quiet")
    resume = ["train", "--resume", "--quiet", "--out"]
    fails(2, "holds no checkpoint to resume", *resume, tmp_path / "nowhere")
    fails(2, "training is finished at step 3; give steps", *resume, model)
    fails(2, "dim cannot change when resuming: what was learnt is laid out for it; leave out all "
             "but threads,", *resume, model, "--dim", 64, "--seed", 0)
    fails(2, "steps is 2, but 3 are done", *resume, model, "--steps", 2)
    assert weights(model) == before


@pytest.mark.parametrize(("args", "says"), [
    ("--max-tokens 0", "max_tokens is 0"),
    ("--temperature -1", "temperature is -1.0"),
    ("--top-k -1", "top_k is -1"),
    ("--top-p 0", "top_p is 0.0"),
    ("--min-p 2", "min_p is 2.0"),
    ("--repetition-penalty 0", "repetition_penalty is 0.0"),
    ("--seed -1", "seed is -1"),
    ("--threads 0", "threads is 0"),
    ("--prompt \udcff", "lone surrogate"),
    ("--precision fp8", "precision is 'fp8'; choose one of fp32, bf16, int8"),
])  # fmt: skip
def test_what_generate_refuses(fails: Fails, made: Path, args: str, says: str) -> None:
    fails(2, says, "generate", made, *args.split())


@pytest.mark.parametrize(
    "args", ["--precision fp16", "--loss half", "--samples 0", "--preset big", "--steps 1"]
)
def test_what_bench_refuses(fails: Fails, args: str) -> None:
    fails(2, ["Invalid value", "See crystalline bench step --help"], "bench", "step", *args.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--loss sampled --samples 66", "samples is 66, but the vocabulary has 65 tokens"),
        ("--samples 40", "samples is 40, but loss is full; choose loss sampled"),
    ],
)
def test_what_bench_refuses_of_samples(fails: Fails, args: str, says: str) -> None:
    fails(2, says, "bench", "step", "--preset", "nano", *args.split())


# --- checkpoints ----------------------------------------------------------------------------------


def truncated(path: Path) -> str:
    os.truncate(path, path.stat().st_size // 2)
    return "truncated"


def flipped(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return "damaged"


def missing(path: Path) -> str:
    path.unlink()
    return "missing"


@pytest.mark.parametrize("damage", [truncated, flipped, missing])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_model(
    fails: Fails, model: Path, name: str, damage: Callable[[Path], str]
) -> None:
    says = [name, damage(model / name), "; restore it from a copy, or train again"]
    fails(1, says, "generate", model)
    fails(1, says, "info", model)
    fails(1, says, "train", "--resume", "--out", model, "--steps", 9, "--quiet")


@pytest.mark.parametrize("name", ["optimizer.safetensors", "training_state.json"])
def test_a_damaged_training(fails: Fails, model: Path, name: str) -> None:
    says = [name, flipped(model / name)]
    fails(1, says, "info", model)
    fails(1, says, "train", "--resume", "--out", model, "--steps", 9, "--quiet")
    assert invoke("generate", model, "--max-tokens", 3)  # it needs neither


def test_damaged_data(fails: Fails, model: Path) -> None:
    says = ["train-00000.bin", flipped(model / "data" / "train-00000.bin")]
    fails(1, says, "info", model)
    fails(1, says, "train", "--resume", "--out", model, "--steps", 9, "--quiet")


def test_a_folder_without_a_model(fails: Fails, tmp_path: Path) -> None:
    fails(1, "holds no checkpoint; give the folder", "generate", tmp_path)
    fails(1, "no such folder; give the folder", "info", tmp_path / "nowhere")


def test_a_loss_that_is_no_number(
    fails: Fails, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(model)
    monkeypatch.setattr(Decoder, "gradient", lambda *args: float("nan"))
    fails(1, ["the loss is nan", "at step 4", "is intact; lower lr (now 0.003)"],
          "train", "--resume", "--out", model, "--steps", 9, "--quiet")  # fmt: skip
    assert weights(model) == before
    assert invoke("info", model)


def test_a_limit_on_the_size_of_files(model: Path) -> None:
    before = weights(model)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (40000, 40000))
    code, out, err = run("train", "--resume", "--out", model, "--steps", 6, "--quiet",
                         preexec_fn=limit)  # fmt: skip
    assert (code, out) == (1, "")
    one_line(err, ["file size limit reached while saving", "raise ulimit -f"])
    assert weights(model) == before
    assert "step 3 of 3" in invoke("info", model)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one checkpoint, but not for a second beside it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=720k", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and not subprocess.call(mount, stderr=subprocess.DEVNULL)
    if not mounted:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, made: Path) -> None:
    shutil.copytree(made, small_disk / "m")
    before = weights(small_disk / "m")
    code, _, err = run("train", "--resume", "--out", small_disk / "m", "--steps", 6, "--quiet")
    assert code == 1
    one_line(err, ["disk full while saving", "free 1 MiB"])
    assert weights(small_disk / "m") == before
    assert "step 3 of 3" in invoke("info", small_disk / "m")


def test_a_disk_without_room_for_the_first_checkpoint(small_disk: Path, text_file: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(400 * 1024))
    code, _, err = run("train", text_file, "--out", small_disk / "m", "--quiet", *SMALL, *STEPS)
    assert code == 1
    one_line(err, ["disk full while", "free "])


def test_standard_output_on_a_full_disk(made: Path) -> None:
    with open("/dev/full", "w") as full:
        code, _, err = run("generate", made, stdout=full)
    assert code == 1
    one_line(err, "No space left on device; check the disk")


def test_no_memory_left(fails: Fails, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError("Unable to allocate 9 GiB"), OSError(12, "Cannot allocate memory")):

        def load(*args: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("crystalline.inference.model.load", load)
        fails(1, ["out of memory", "; choose smaller sizes, or free some memory"], "generate", made)


def test_a_fault_of_the_program_is_not_hidden(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("crystalline.inference.model.load", load)
    with pytest.raises(ZeroDivisionError):
        main(["generate", str(made)])
