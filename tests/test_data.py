"""Finding texts: what is taken, what is left out and why, and what is held out."""

import builtins
import os
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline.data import reading as data
from crystalline.data.reading import (
    Piece,
    Skipped,
    Source,
    Unusable,
    collect,
    find_files,
    read_file,
    split,
)
from crystalline.errors import DataError


def write(folder, **files):
    """Files by name; ``a__b_txt`` is a/b.txt."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def png(width):
    rows = zlib.compress(os.urandom(3 * width * width))
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, width, 8, 2, 0, 0, 0)
        + rows
    )


def names(sources, folder):
    return [os.path.relpath(source.path, folder) for source in sources]


def reasons(skipped, folder):
    return {os.path.relpath(item.path, folder): item.reason for item in skipped}


def test_a_folder_is_walked_in_the_order_of_names(tmp_path):
    write(tmp_path, b_txt="b", a__z_py="z", a__b__c="c", c_png="named like a picture")
    sources, skipped = collect([tmp_path])
    assert names(sources, tmp_path) == ["a/b/c", "a/z.py", "b.txt", "c.png"]
    assert [source.read() for source in sources] == ["c", "z", "b", "named like a picture"]
    assert [source.size for source in sources] == [1, 1, 1, 20]
    assert skipped == []


def test_paths_are_taken_in_the_order_given_and_each_file_once(tmp_path):
    write(tmp_path, a="1", b="2", d__c="3")
    sources, skipped = collect([tmp_path / "d", tmp_path / "b", tmp_path])
    assert names(sources, tmp_path) == ["d/c", "b", "a"]
    assert {r.split(":")[0] for r in reasons(skipped, tmp_path).values()} == {"same as another"}


def test_one_path_needs_no_list(tmp_path):
    write(tmp_path, a="text")
    assert (
        collect(str(tmp_path))
        == collect(tmp_path)
        == collect([tmp_path / "."])[:0] + collect(tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "encoding", "text"),
    [
        (b"plain\r\nlines\r", "utf-8", "plain\r\nlines\r"),
        ("日本語 é".encode(), "utf-8", "日本語 é"),
        ("é".encode("utf-8-sig"), "utf-8-sig", "é"),
        ("héllo\n".encode("utf-16"), "utf-16", "héllo\n"),
        (b"\xfe\xff" + "日\r\n".encode("utf-16-be"), "utf-16", "日\r\n"),
        (b"\x1b[1mbold\x1b[0m and DOS\x1a", "utf-8", "\x1b[1mbold\x1b[0m and DOS\x1a"),
    ],
)
def test_text_is_read_as_it_is(tmp_path, content, encoding, text):
    path = tmp_path / "file"
    path.write_bytes(content)
    [source], _ = collect([path])
    assert (source.encoding, source.size) == (encoding, len(content))
    assert source.read() == text


LATIN1 = "Voilà une phrase écrite à l'école, très simple.\n".encode("latin-1")
KOI8 = "Это русский текст.".encode("koi8-r")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"\xff\xfe", "empty"),
        (b"text\0text", "binary"),
        ("a\0b".encode("utf-16"), "binary"),
        (png(9), "binary"),
        (bytes(range(1, 256)) * 5, "binary"),
        (bytes(range(1, 32)) * 5, "binary"),
        (
            LATIN1,
            "undecodable: not UTF-8, perhaps Latin-1; convert it with iconv -f latin1 -t utf-8",
        ),
        (KOI8, "undecodable: not UTF-8; convert it with iconv -f ITS-ENCODING -t utf-8"),
        (
            "日".encode()[:2],
            "undecodable: not UTF-8; convert it with iconv -f ITS-ENCODING -t utf-8",
        ),
        (b"\xff\xfea", "undecodable: damaged UTF-16; save it again as UTF-8"),
        (b"\xff\xfe\x00\xd8a\x00", "undecodable: damaged UTF-16; save it again as UTF-8"),
        ("a".encode("utf-32"), "undecodable: UTF-32; convert it with iconv -f UTF-32 -t UTF-8"),
        (b"x" * 2001, "oversized: 0.0 MiB, at most 0.0 MiB; cut it with split -C"),
    ],
)
def test_what_is_no_text_is_skipped_with_the_reason(tmp_path, content, reason):
    write(tmp_path, good="text")
    (tmp_path / "bad").write_bytes(content)
    sources, skipped = collect([tmp_path], max_file_bytes=2000)
    assert names(sources, tmp_path) == ["good"]
    assert reasons(skipped, tmp_path) == {"bad": reason}
    with pytest.raises(DataError) as info:
        collect([tmp_path / "bad"], max_file_bytes=2000)
    assert str(info.value) == f"{tmp_path / 'bad'}: cannot train on it, {reason}"


@given(text=st.text(min_size=1), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
@settings(deadline=None)
def test_any_text_taken_is_read_back_and_chunks_leave_no_trace(tmp_path_factory, text, encoding):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(text.encode(encoding))
    whole = data.CHUNK
    taken = []
    for size in (whole, 1, 3):
        data.CHUNK = size
        try:
            taken.append(collect([path])[0][0])
        except DataError as error:
            taken.append(str(error))
        finally:
            data.CHUNK = whole
    assert taken[0] == taken[1] == taken[2]
    if isinstance(taken[0], Source):
        assert taken[0].read() == text.removeprefix("\ufeff" if encoding == "utf-8" else "")


def test_hidden_files_and_folders_are_skipped_inside_a_folder_only(tmp_path):
    folder = tmp_path / ".config"
    write(folder, a="text")
    write(folder / ".git", HEAD="ref")
    (folder / ".env").write_text("x")
    sources, skipped = collect([folder])
    assert names(sources, folder) == ["a"]
    assert reasons(skipped, folder) == {".git": "hidden", ".env": "hidden"}
    assert len(collect([folder / ".env"])[0]) == 1


def test_links_are_followed_once_and_never_in_circles(tmp_path):
    write(tmp_path, a__text="1", b__other="2")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "across").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "a" / "gone").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "text")
    sources, skipped = collect([tmp_path])
    assert names(sources, tmp_path) == ["a/across/other", "a/text"]
    found = reasons(skipped, tmp_path)
    assert found["a/up"] == "loop of links"
    assert found["b"] == f"same as another: {tmp_path}/a/across"
    assert found["link"] == f"same as another: {tmp_path}/a/text"
    assert found["a/self"].startswith("unreadable: Too many levels")
    assert found["a/gone"] == "unreadable: No such file or directory"
    with pytest.raises(DataError, match="unreadable: No such file"):
        collect([tmp_path / "a" / "gone"])


def test_special_files_are_never_opened(tmp_path):
    write(tmp_path, a="text")
    os.mkfifo(tmp_path / "pipe")
    assert reasons(collect([tmp_path])[1], tmp_path) == {"pipe": "special file"}
    with pytest.raises(DataError, match="special file"):
        collect(["/dev/null"])


def test_a_file_or_folder_that_may_not_be_read_is_skipped(tmp_path, monkeypatch):
    write(tmp_path, a="text", locked="x", shut__b="y")
    real_open, real_list = builtins.open, os.listdir

    def refuse(real):
        def guarded(path, *args, **kwargs):
            if os.path.basename(path) in ("locked", "shut"):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *args, **kwargs)

        return guarded

    monkeypatch.setattr(builtins, "open", refuse(real_open))
    monkeypatch.setattr(os, "listdir", refuse(real_list))
    sources, skipped = collect([tmp_path])
    assert names(sources, tmp_path) == ["a"]
    assert set(reasons(skipped, tmp_path).values()) == {"unreadable: Permission denied"}
    with pytest.raises(DataError, match="locked: cannot train on it, unreadable: Permission"):
        collect([tmp_path / "locked"])


def test_a_file_that_fails_while_it_is_read_is_skipped(tmp_path):
    write(tmp_path, a="text")
    # Reading one's own memory from its start fails although opening it succeeds.
    (tmp_path / "memory").symlink_to("/proc/self/mem")
    assert reasons(collect([tmp_path])[1], tmp_path)["memory"].startswith("unreadable: ")


def test_a_deep_folder_is_walked(tmp_path):
    path = str(tmp_path)
    for _ in range(400):
        path += "/d"
        os.mkdir(path)
    with open(path + "/f", "w") as file:
        file.write("deep")
    assert collect([tmp_path])[0][0].read() == "deep"


def test_names_that_are_no_utf8_can_be_read_and_shown(tmp_path):
    folder = os.fsencode(tmp_path)
    for name, content in ((b"\xff", b"text"), (b"\xfe", b"\0")):
        with open(folder + b"/" + name, "wb") as file:
            file.write(content)
    [source], [skipped] = collect([tmp_path])
    assert source.read() == "text"
    assert skipped.path.encode().endswith("\ufffd".encode())
    os.unlink(source.path)
    with pytest.raises(DataError) as info:
        source.read()
    str(info.value).encode()


def test_a_missing_path_is_named(tmp_path):
    write(tmp_path, a="text")
    with pytest.raises(DataError, match=r"nope: no such file or folder"):
        collect([tmp_path, tmp_path / "nope"])
    with pytest.raises(DataError, match="no path given"):
        collect([])


def test_a_folder_of_images_says_what_was_found(tmp_path):
    write(tmp_path, **{f"p{i}_png": png(i) for i in range(1, 6)}, empty="")
    with pytest.raises(DataError) as info:
        collect([tmp_path])
    message = str(info.value)
    assert message.startswith(f"{tmp_path}: no text to train on: 5 binary, 1 empty (first: ")
    assert message.count("png: binary") == 2
    assert message.endswith("give text or source code in UTF-8")
    assert "\n" not in message


def test_an_empty_folder_and_many_paths_are_told(tmp_path):
    folders = [tmp_path / str(i) for i in range(5)]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(DataError, match="0: no text to train on: no files in it"):
        collect([folders[0]])
    with pytest.raises(DataError, match="and 2 more: no text"):
        collect(folders)


@pytest.mark.parametrize("after", [None, b"\xff\xff"])
def test_a_file_that_changes_later_is_a_data_error(tmp_path, after):
    write(tmp_path, a="text")
    [source], _ = collect([tmp_path])
    os.unlink(source.path)
    if after:
        (tmp_path / "a").write_bytes(after)
    with pytest.raises(DataError, match=r"a: changed since it was found \(.+\)"):
        source.read()


def make_sources(folder, sizes):
    for number, size in enumerate(sizes):
        write(folder, **{f"doc{number:03d}": "x" * size})
    return collect([folder])[0]


@given(text=st.text(min_size=1, max_size=40))
@settings(deadline=None)
def test_one_document_holds_out_its_last_tenth(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("one") / "file"
    path.write_bytes(text.encode())
    train, val = split([Source(str(path), len(text.encode()), "utf-8")])
    assert "".join(piece.read() for piece in train + val) == text
    if len(text) == 1:
        assert (len(train), val) == (1, [])
    else:
        assert train[0].read() == text[: int(0.9 * len(text))]
        assert val[0].read() != ""


def test_the_sizes_of_the_parts_are_about_theirs():
    source = Source("x", 1000, "utf-8")
    assert [Piece(source, part).size for part in ("all", "head", "tail")] == [1000, 900, 100]


@given(sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=60))
@settings(deadline=None)
def test_about_a_tenth_of_several_documents_is_held_out(sizes):
    sources = [Source(f"/data/{i}", size, "utf-8") for i, size in enumerate(sizes)]
    train, val = split(sources)
    assert sorted(p.source.path for p in train + val) == sorted(s.path for s in sources)
    assert [p.source for p in train] == [s for s in sources if Piece(s) in train]
    assert 1 <= len(val) <= max(1, round(len(sizes) / 10))
    assert train
    held = sum(piece.size for piece in val)
    assert held <= sum(sizes) / 10 or (len(val) == 1 and held == min(sizes))


def test_the_choice_stays_when_the_folder_moves(tmp_path):
    here = make_sources(tmp_path / "here", [10] * 40)
    there = make_sources(tmp_path / "else" / "where", [10] * 40)
    chosen = [os.path.basename(p.source.path) for p in split(here)[1]]
    assert chosen == [os.path.basename(p.source.path) for p in split(there)[1]]
    assert len(chosen) == 4


def test_what_is_named_for_validation_is_not_learnt(tmp_path):
    sources = make_sources(tmp_path, [5, 6, 7])
    (tmp_path / "link").symlink_to(tmp_path / "doc001")
    named, _ = collect([tmp_path / "link"])
    train, val = split(sources, named)
    assert [os.path.basename(p.source.path) for p in train] == ["doc000", "doc002"]
    assert val == [Piece(named[0])]
    with pytest.raises(DataError, match="also held out"):
        split(sources[1:2], named)


def test_files_read_in_one_opening_are_those_that_are_collected(tmp_path):
    for name, content in (
        ("a", b"text"), ("b", "W\xf6rter\r\n".encode("utf-8-sig")), ("c", "zwei".encode("utf-16")),
        ("d", b"\0"), ("e", b""), ("f", b"\xff"), ("g", b"long " * 9), (".h", b"hidden"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "nowhere").symlink_to("nothing")
    sources, skipped = collect(tmp_path, max_file_bytes=40)
    found, left = find_files(tmp_path, max_file_bytes=40)
    texts = {}
    for file in found:
        try:
            text, read = read_file(file.path)
            assert read == file
            texts[file.path] = text
        except Unusable as error:
            left.append(Skipped(file.path, str(error)))
    assert texts == {source.path: source.read() for source in sources}
    assert sorted(left, key=lambda one: one.path) == sorted(skipped, key=lambda one: one.path)
    with pytest.raises(Unusable, match="oversized"):
        read_file(str(tmp_path / "g"), max_file_bytes=40)
