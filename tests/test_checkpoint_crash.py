"""Saving under crashes, power loss, full disks and competition: the old or the new, never a mix."""

import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import pytest
from checkpoint_cases import Case, Crash, Disk, fail_with, fresh

from crystalline.checkpoints import checkpoint
from crystalline.checkpoints.checkpoint import load_model
from crystalline.errors import CheckpointError

OLD, NEW, NEXT = Case(1), Case(2), Case(3)
BARE_OLD, BARE_NEW = Case(4, training=False), Case(5, training=False)
TRANSITIONS = {
    "first": (None, NEW),
    "training to training": (OLD, NEW),
    "training to bare": (OLD, BARE_NEW),
    "bare to training": (BARE_OLD, NEW),
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models" / "m"


def saved(case, tmp_path):
    """A folder that holds the case, to copy from; None for no case."""
    if case is None:
        return None
    template = tmp_path / "template"
    case.save(template)
    return template


def check_whole(folder, old, new):
    """The folder holds one of both (or, without an old one, nothing); says whether the new one."""
    if old is None:
        try:
            load_model(folder)
        except CheckpointError as error:
            assert "no such folder" in str(error) or "holds no checkpoint" in str(error)
            return False
    is_new = new.is_in(folder)
    assert is_new or old.is_in(folder)
    return is_new


def leftovers(folder):
    return {n for n in os.listdir(folder) if n.endswith(".new") or n == "commit.json"}


def each_operation(monkeypatch, tmp_path, folder, old, new, **disk_options):
    """Yield a disk and the error, for a save that is hit at its 1st, 2nd, 3rd, ... operation."""
    template = saved(old, tmp_path)
    for at in itertools.count():
        fresh(folder, template)
        disk, error = None, None
        with monkeypatch.context() as patch:
            disk = Disk(patch, folder, at=at, **disk_options)
            try:
                new.save(folder)
            except (Crash, CheckpointError) as caught:
                error = caught
        if disk.count <= at:  # the save ended before its turn came
            assert error is None
            assert at > 0
            return
        yield disk, error


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("power", ["stays", "lost", "lost with names"])
def test_a_crash_at_any_operation_leaves_old_or_new(
    monkeypatch, tmp_path, folder, transition, power
):
    old, new = TRANSITIONS[transition]
    outcomes = []
    for disk, error in each_operation(monkeypatch, tmp_path, folder, old, new, act=Disk.crash):
        assert isinstance(error, Crash)
        if power != "stays":
            disk.lose_power(names_too=power == "lost with names")
        outcomes.append(check_whole(folder, old, new))
        NEXT.save(folder)
        assert NEXT.is_in(folder)
        assert not leftovers(folder)
    assert len(outcomes) > 40
    assert outcomes == sorted(outcomes)  # old up to one moment, new from then on
    assert {False, True} == set(outcomes)


def test_a_crash_while_finishing_after_a_crash_is_finished_by_the_next(
    monkeypatch, tmp_path, folder
):
    pending = crash_with_pending_commit(monkeypatch, tmp_path)
    for at in itertools.count():
        fresh(folder, pending)
        with monkeypatch.context() as patch:
            disk = Disk(patch, folder, at=at, act=Disk.crash)
            with contextlib.suppress(Crash):
                load_model(folder)
        assert NEW.is_in(folder)
        assert not leftovers(folder)
        if disk.count <= at:
            break
    assert at > 10


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOSPC, errno.EFBIG])
def test_an_error_at_any_operation_is_one_line_that_tells_the_state(
    monkeypatch, tmp_path, folder, code
):
    for _, error in each_operation(monkeypatch, tmp_path, folder, OLD, NEW, act=fail_with(code)):
        message = str(error)
        assert "\n" not in message
        if error is None or "not yet in place" in message:
            assert NEW.is_in(folder)
        else:
            assert str(folder) in message
            assert OLD.is_in(folder)
        assert not leftovers(folder)  # nothing fills a disk that is full already
        NEXT.save(folder)
        assert NEXT.is_in(folder)


@pytest.mark.parametrize("old", [OLD, None])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_full_at_any_write(monkeypatch, tmp_path, folder, code, old):
    for _, error in each_operation(
        monkeypatch, tmp_path, folder, old, NEW, act=fail_with(code), only="write"
    ):
        assert f"disk full while saving {folder}" in str(error)
        assert "free 1 MiB" in str(error)
        was = "no checkpoint was there before" if old is None else "earlier checkpoint is intact"
        assert was in str(error)
        assert not check_whole(folder, old, NEW)
        assert not leftovers(folder)


def test_the_room_asked_for_is_what_is_lacking(monkeypatch, folder):
    usage = shutil._ntuple_diskusage(2**30, 2**30, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    contents = {"model.safetensors": b"x" * (3 * 2**20 + 1)}
    full = OSError(errno.ENOSPC, "No space left on device")
    message = checkpoint._failure(str(folder), "m", full, contents)
    assert message.startswith("disk full while saving m: free 4 MiB;")


def test_a_disk_that_returns_other_bytes_is_noticed(monkeypatch, folder):
    OLD.save(folder)
    write = os.write

    def lying(fd, data):
        data = bytes(data)
        return write(fd, bytes([data[0] ^ 1]) + data[1:])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lying)
        with pytest.raises(CheckpointError, match="other bytes than were written"):
            NEW.save(folder)
    assert OLD.is_in(folder)


def test_names_are_durable_before_each_step_that_relies_on_them(monkeypatch, folder):
    OLD.save(folder)
    steps = []
    replace, sync = os.replace, checkpoint.sync_folder
    monkeypatch.setattr(
        os, "replace", lambda a, b: (steps.append(os.path.basename(b)), replace(a, b))
    )
    monkeypatch.setattr(checkpoint, "sync_folder", lambda f: (steps.append("sync"), sync(f)))
    NEW.save(folder)
    assert steps[:3] == ["sync", "commit.json", "sync"]  # a disk may reorder within, not across
    assert steps[-3:] == ["sync", "checksums.json", "sync"]
    assert set(steps[3:-3]) == set(checkpoint.FILES)


def test_strays_of_a_crash_are_removed_even_if_the_next_save_has_no_such_files(
    monkeypatch, tmp_path, folder
):
    OLD.save(folder)
    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        Disk(patch, folder, at=0, act=Disk.crash, only="replace")
        NEW.save(folder)
    assert "optimizer.safetensors.new" in leftovers(folder)
    BARE_NEW.save(folder)
    assert BARE_NEW.is_in(folder)
    assert not leftovers(folder)


# --- Pending commits ------------------------------------------------------------------------------


def crash_with_pending_commit(monkeypatch, tmp_path):
    """A folder with OLD in place and NEW committed, but no file of it renamed yet."""
    folder = tmp_path / "pending"
    OLD.save(folder)
    with monkeypatch.context() as patch:
        Disk(patch, folder, at=1, act=Disk.crash, only="replace")
        with pytest.raises(Crash):
            NEW.save(folder)
    assert "commit.json" in os.listdir(folder)
    return folder


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_pending_commit_in_a_read_only_folder_is_read_through(monkeypatch, tmp_path, code):
    folder = crash_with_pending_commit(monkeypatch, tmp_path)
    before = sorted(os.listdir(folder))
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(os, name, lambda *args: fail_with(code)(None))
        assert NEW.is_in(folder)
    assert sorted(os.listdir(folder)) == before
    assert NEW.is_in(folder)
    assert not leftovers(folder)


def test_a_pending_commit_half_renamed_in_a_read_only_folder(monkeypatch, tmp_path):
    folder = crash_with_pending_commit(monkeypatch, tmp_path)
    for name in ("config.json", "model.safetensors"):
        os.replace(folder / (name + ".new"), folder / name)
    monkeypatch.setattr(os, "replace", lambda *args: fail_with(errno.EROFS)(None))
    assert NEW.is_in(folder)


def test_a_folder_with_real_read_only_permissions(monkeypatch, tmp_path):
    pending = crash_with_pending_commit(monkeypatch, tmp_path)
    outside = tempfile.mkdtemp()  # where another user can get at it
    is_root = os.geteuid() == 0
    try:
        folder = os.path.join(outside, "m")
        shutil.copytree(pending, folder)
        os.chmod(outside, 0o755)
        os.chmod(folder, 0o555)
        if is_root:  # permissions do not bind root
            os.seteuid(65534)
        assert NEW.is_in(folder)
        assert "commit.json" in os.listdir(folder)
        with pytest.raises(CheckpointError, match=r"Permission denied.*intact"):
            NEXT.save(folder)
    finally:
        if is_root:
            os.seteuid(0)
        os.chmod(folder, 0o755)
        shutil.rmtree(outside)


@pytest.mark.parametrize("name", ["model.safetensors.new", "optimizer.safetensors.new"])
@pytest.mark.parametrize("truncate", [True, False])
def test_damage_to_a_pending_commit_leaves_the_earlier_files(monkeypatch, tmp_path, name, truncate):
    folder = crash_with_pending_commit(monkeypatch, tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data[:-5] if truncate else data)
    with pytest.raises(CheckpointError, match=f"{name}: {'truncated' if truncate else 'damaged'}"):
        load_model(folder)
    with pytest.raises(CheckpointError, match=name):
        NEXT.save(folder)
    os.unlink(folder / "commit.json")
    assert OLD.is_in(folder)


def test_damage_to_the_commit_itself_says_how_to_go_back(monkeypatch, tmp_path):
    folder = crash_with_pending_commit(monkeypatch, tmp_path)
    (folder / "commit.json").write_bytes((folder / "commit.json").read_bytes()[:-1])
    for attempt in (load_model, NEXT.save):
        with pytest.raises(CheckpointError, match=r"commit\.json: damaged.*delete it"):
            attempt(folder)
    os.unlink(folder / "commit.json")
    assert OLD.is_in(folder)
    NEXT.save(folder)
    assert NEXT.is_in(folder)


# --- Several processes ----------------------------------------------------------------------------


def test_a_reader_beside_a_saver_gets_one_of_both(folder):
    OLD.save(folder)
    done = threading.Event()

    def saver():
        for _ in range(6):
            NEW.save(folder)
            OLD.save(folder)
        done.set()

    thread = threading.Thread(target=saver)
    thread.start()
    reads = 0
    while not done.is_set():
        config, _, weights = load_model(folder)
        case = OLD if config == OLD.config else NEW
        assert all((weights[name] == w).all() for name, w in case.weights.items())
        reads += 1
    thread.join()
    assert reads
    assert not leftovers(folder)


def test_a_reader_that_is_overtaken_starts_over_and_at_last_gives_up(monkeypatch, folder):
    OLD.save(folder)
    parse = checkpoint._parse_open
    savers = [NEW, None]

    def overtaken(where, path_of):
        config_path = path_of("config.json")
        if savers and (case := savers.pop(0)):
            case.save(folder)
        assert os.path.exists(config_path)
        return parse(where, path_of)

    monkeypatch.setattr(checkpoint, "_parse_open", overtaken)
    assert load_model(folder)[0] == NEW.config
    savers[:] = [OLD, NEW] * 10
    with pytest.raises(CheckpointError, match="another process keeps saving there; try again"):
        load_model(folder)


SCRIPT = """
import os, resource, signal, sys
sys.path[:0] = {path!r}
from checkpoint_cases import Case, Disk
import pytest
from crystalline.errors import CheckpointError
folder, what, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
if what == "kill":
    die = lambda disk: os.kill(os.getpid(), signal.SIGKILL)
    Disk(pytest.MonkeyPatch(), folder, at=number, act=die)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
try:
    Case(2).save(folder)
except CheckpointError as error:
    print(error)
"""


def run_script(folder, what, number):
    script = SCRIPT.format(path=[p for p in sys.path if p])
    return subprocess.run(
        [sys.executable, "-c", script, str(folder), what, str(number)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.02, 0.5, 0.8, 0.9, 0.97])
def test_a_killed_process_leaves_old_or_new(monkeypatch, tmp_path, folder, share):
    OLD.save(folder)
    OLD.save(tmp_path / "count")
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path / "count")
        NEW.save(tmp_path / "count")
    ended = run_script(folder, "kill", int(share * disk.count))
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    check_whole(folder, OLD, NEW)
    NEXT.save(folder)
    assert NEXT.is_in(folder)
    assert not leftovers(folder)


@pytest.mark.parametrize("limit", [0, 100, 5000, 10000])
def test_a_file_size_limit(folder, limit):
    OLD.save(folder)
    ended = run_script(folder, "limit", limit)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("file size limit reached while saving ")
    assert "raise ulimit -f; the earlier checkpoint is intact" in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert OLD.is_in(folder)
    assert not leftovers(folder)


@pytest.mark.parametrize("below", [False, True])
def test_a_folder_that_is_a_file(tmp_path, below):
    (tmp_path / "m").write_text("x")
    folder = tmp_path / "m" / "deeper" if below else tmp_path / "m"
    with pytest.raises(CheckpointError, match=r"cannot save there .* choose a folder"):
        NEW.save(folder)
    with pytest.raises(CheckpointError, match=str(folder)):
        load_model(folder)


def test_other_files_in_the_folder_are_left_alone(folder):
    folder.mkdir(parents=True)
    (folder / "notes.new").write_text("mine")
    for case in (OLD, BARE_NEW):
        case.save(folder)
    assert (folder / "notes.new").read_text() == "mine"
