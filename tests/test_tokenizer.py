"""The tokenizer: ids that do not depend on how the work is cut, and text that comes back."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline.data import tokenizer as module
from crystalline.data.splitting import AT_WHITE_SPACE, KNOWN, kind_of, pre_tokenizer
from crystalline.data.tokenizer import EOT, Tokenizer, default_vocab_size
from crystalline.errors import ConfigError, UsageError

PROSE = "It's the king's horse; we'll ride.\n\n  Who's there?\tNobody\r\n" * 20
CODE = "def f(x):\n    return {'a': [1, 22, 333], 'é': \"日本語\"}\n\n\n" * 20
# White space of every kind, what Python alone calls white space, and what begins a word.
TRICKY = st.text(
    alphabet="a'sreZ9 \n\r\t\v\f\x1c\x1f\x85\xa0\u2003\u2028\u3000\u180e\u200b.é日🙂\u0301\0",
    max_size=60,
)


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([PROSE, CODE], 320)


def altered(tok, change):
    """The JSON of a tokenizer after ``change`` was applied to it."""
    described = json.loads(tok.to_json())
    change(described)
    return json.dumps(described).encode()


@given(text=st.text())
@settings(deadline=None)
def test_decode_returns_any_text(tok, text):
    ids = tok.encode(text)
    assert ids.dtype == np.int32
    assert tok.decode(ids) == text
    assert b"".join(tok.token_bytes(int(i)) for i in ids) == text.encode()


@given(text=TRICKY, size=st.integers(1, 7))
@settings(deadline=None, max_examples=examples(500))
def test_a_text_cut_in_pieces_has_the_words_of_the_whole(tok, text, size):
    # Equal words are more than equal ids: they hold for every vocabulary.
    pieces = list(module._cut(text, size, AT_WHITE_SPACE))
    assert "".join(pieces) == text
    split = tok._backend.pre_tokenizer.pre_tokenize_str
    assert [word for piece in pieces for word, _ in split(piece)] == [w for w, _ in split(text)]
    whole = tok._backend.encode(text, add_special_tokens=False).ids
    assert [i for ids in tok.encode_batch(pieces) for i in ids.tolist()] == whole


def test_long_texts_are_cut_and_grouped_without_a_trace(tok, monkeypatch):
    texts = [PROSE, "", CODE, "x" * 500, "one"]
    whole = [tok._backend.encode(t, add_special_tokens=False).ids for t in texts]
    monkeypatch.setattr(module, "PIECE", 50)
    monkeypatch.setattr(module, "GROUP", 200)
    assert [ids.tolist() for ids in tok.encode_batch(texts)] == whole
    assert tok.encode_batch([]) == []


def test_training_twice_gives_the_same_file(tok):
    assert Tokenizer.train(iter([PROSE, CODE]), 320).to_json() == tok.to_json()


def test_training_gives_the_size_asked_for_and_eot_first(tok):
    assert (tok.vocab_size, tok.eot) == (320, 0)
    assert tok.token_bytes(0) == b""
    assert sorted(tok.token_bytes(i) for i in range(1, 257)) == [bytes([i]) for i in range(256)]


@pytest.mark.parametrize("text", ["", "a", "hello", "one line of text\n", "日"])
def test_little_text_makes_a_smaller_vocabulary(text):
    tok = Tokenizer.train([text], 5000)
    assert 257 <= tok.vocab_size < 300
    assert tok.decode(tok.encode(text)) == text


def test_the_smallest_vocabulary_is_the_bytes():
    assert Tokenizer.train([PROSE], 257).encode("ab").size == 2
    with pytest.raises(ConfigError, match=r"vocab_size is 256.*257"):
        Tokenizer.train([PROSE], 256)


def test_training_takes_an_even_sample_of_bounded_size(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 1000)
    monkeypatch.setattr(module, "SAMPLE_PIECE", 10)
    numbers = " ".join(f"{i:05d}" for i in range(2000))
    sample = module._sample([numbers[:6000], numbers[6000:]])
    assert 500 <= sum(map(len, sample)) <= 1000
    places = [int(piece.split()[0]) for piece in sample]
    assert set(np.diff(places)) <= {places[1] - places[0] + d for d in (-2, -1, 0, 1, 2)}
    assert places[-1] > 1900
    assert sum(map(len, module._sample(["x" * 10**6]))) <= 1000


def test_a_word_of_a_million_letters_trains_quickly():
    rng = np.random.PCG64(0)
    word = "".join(chr(97 + int(i % 10)) for i in rng.random_raw(100_000))
    tok = Tokenizer.train([word], 600)
    assert tok.vocab_size == 600
    assert tok.decode(tok.encode(word)) == word


def test_eot_in_a_text_is_text(tok):
    ids = tok.encode(f"a{EOT}b")
    assert tok.eot not in ids
    assert tok.decode(ids) == f"a{EOT}b"


def test_decode_leaves_eot_out_and_marks_broken_characters(tok):
    e_acute = tok.encode("é")
    first = tok.encode("日").tolist()[:1]
    assert tok.decode([tok.eot, *tok.encode("a"), tok.eot]) == "a"
    assert tok.decode(np.concatenate([e_acute, first])) == "é\ufffd"
    assert tok.decode([]) == ""


@pytest.mark.parametrize("id", [-1, 320, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(tok, id):
    with pytest.raises(UsageError, match=r"not in the vocabulary 0\.\.319"):
        tok.token_bytes(id)
    with pytest.raises(UsageError):
        tok.decode([id])


def test_a_lone_surrogate_is_refused(tok):
    with pytest.raises(UsageError, match=r"U\+DCFF"):
        tok.encode("a\udcff")


def test_saving_and_loading_changes_nothing(tok, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tok.to_json())
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = Tokenizer.load(path)
        assert loaded.to_json() == tok.to_json()
        assert (loaded.eot, loaded.vocab_size) == (tok.eot, tok.vocab_size)
        assert loaded.encode(PROSE).tolist() == tok.encode(PROSE).tolist()


def test_transformers_gives_the_same_ids(tok, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_bytes(tok.to_json())
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in (PROSE, CODE, " a  b", "\ufeffx"):
        ids = theirs(text)["input_ids"]
        assert ids == tok.encode(text).tolist()
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json: cannot be read \(No such file"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[1", b'{"model": 3}'])
def test_what_is_no_tokenizer_is_refused(data):
    with pytest.raises(ConfigError, match=r"^here: no tokenizer"):
        Tokenizer.from_json(data, "here")


def rename_eot(described, name):
    described["added_tokens"][0]["content"] = name
    vocab = described["model"]["vocab"]
    vocab[name] = vocab.pop(EOT)


def word_level(described):
    described["model"] = {"type": "WordLevel", "vocab": {EOT: 0}, "unk_token": EOT}


def without_byte(described):
    model = described["model"]
    model["merges"] = []
    model["vocab"] = {EOT: 0} | {c: i + 1 for i, c in enumerate(list(module._byte_symbols())[1:])}


def two_unknown_specials(described):
    rename_eot(described, "<a>")
    described["added_tokens"].append(described["added_tokens"][0] | {"id": 320, "content": "<b>"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (word_level, "WordLevel, not BPE"),
        (lambda d: d["model"].update(dropout=0.1), "dropout is 0.1"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix is '</w>'"),
        (lambda d: d.update(decoder=None), "not made of bytes"),
        (without_byte, "1 of the 256 bytes"),
        (lambda d: d.update(added_tokens=[]), "it has none"),
        (two_unknown_specials, "<a>, <b>"),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_refused(tok, change, message):
    with pytest.raises(ConfigError, match=message) as info:
        Tokenizer.from_json(altered(tok, change), "here")
    assert str(info.value).startswith("here: ")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["</s>", "<|im_end|>", "<unheard-of>"])
def test_the_end_of_text_is_found_among_the_special_tokens(tok, name):
    assert Tokenizer.from_json(altered(tok, lambda d: rename_eot(d, name)), "here").eot == 0


def test_added_tokens_keep_their_ids_and_bytes(tok):
    def change(described):
        described["added_tokens"] += [
            described["added_tokens"][0] | {"id": 320, "content": "<|é|>", "special": False},
            described["added_tokens"][0] | {"id": 321, "content": "<|user|>"},
        ]
        described["truncation"] = {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        }

    given = Tokenizer.from_json(altered(tok, change), "here")
    assert given.vocab_size == 322
    assert [given.token_bytes(i) for i in (320, 321)] == ["<|é|>".encode(), b""]
    assert given._cut is None
    text = "a <|é|> and <|user|> " * 5
    assert given.encode(text).tolist().count(320) == 5
    assert given.decode(given.encode(text)) == text


def test_holes_in_the_ids_count_as_tokens_without_bytes(tok):
    holed = Tokenizer.from_json(altered(tok, lambda d: d["model"]["vocab"].update({"日": 405})), "")
    assert holed.vocab_size == 406
    assert [holed.token_bytes(i) for i in (404, 405)] == [b"", "日".encode()]


def test_a_foreign_split_is_encoded_whole(tok, monkeypatch):
    def change(described):
        described["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [{"type": "Punctuation"}, described["pre_tokenizer"]],
        }

    given = Tokenizer.from_json(altered(tok, change), "here")
    assert given._cut is None
    monkeypatch.setattr(module, "PIECE", 10)
    assert given.encode(CODE).tolist() == given._backend.encode(CODE).ids
    assert given.decode(given.encode(CODE)) == CODE


def split_as(tok, kind):
    return altered(tok, lambda d: d.update(pre_tokenizer=pre_tokenizer(kind)))


@pytest.mark.parametrize("kind", KNOWN)
def test_a_known_split_is_recognised_and_saved_byte_for_byte(tok, kind):
    data = split_as(tok, kind)
    given = Tokenizer.from_json(data, "here")
    assert kind_of(json.loads(data)) == kind_of(json.loads(given._backend.to_str())) == kind
    assert given.to_json() == data


@pytest.mark.parametrize("kind", KNOWN)
@given(text=TRICKY, size=st.integers(1, 7))
@settings(deadline=None, max_examples=examples(200))
def test_a_text_cut_where_its_split_allows_has_the_words_of_the_whole(tok, kind, text, size):
    other = Tokenizer.from_json(split_as(tok, kind), "here")
    pieces = list(module._cut(text, size, other._cut))
    assert "".join(pieces) == text
    split = other._backend.pre_tokenizer.pre_tokenize_str
    assert [word for piece in pieces for word, _ in split(piece)] == [w for w, _ in split(text)]


def test_the_end_and_the_beginning_of_texts_can_be_said(tok):
    def change(described):
        added = described["added_tokens"]
        added.append(added[0] | {"id": 320, "content": "<b>"})

    data = altered(tok, change)
    assert (Tokenizer.from_json(data, "x").eot, Tokenizer.from_json(data, "x").bos) == (0, 0)
    said = Tokenizer.from_json(data, "x", eot=320, bos=0)
    assert (said.eot, said.bos, said.adds_bos) == (320, 0, False)
    with pytest.raises(ConfigError, match="end with token 5, which is none of its 2 added"):
        Tokenizer.from_json(data, "x", eot=5)


def test_bytes_that_texts_do_without_may_be_missing(tok):
    def change(described):
        model = described["model"]
        model["merges"] = []
        known = [s for s, b in module._byte_symbols().items() if b not in (4, 0xF1)]
        model["vocab"] = {EOT: 0} | {c: i + 1 for i, c in enumerate(known)}

    given = Tokenizer.from_json(altered(tok, change), "here")
    assert given.lost_bytes == [4, 0xF1]
    assert given.decode(given.encode("a\x04b")) == "ab"
    assert tok.lost_bytes == []


def test_the_default_vocabulary_grows_with_the_corpus():
    sizes = [default_vocab_size(n) for n in (0, 1, 1000, 10**6, 10**7, 10**9, 10**12)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 257
    assert sizes[3] == 1024
    assert sizes[-1] == 32000
    assert all(size % 64 == 0 for size in sizes)


FORKING = """
import os, signal, sys
from crystalline.data.tokenizer import Tokenizer
text = "some words to encode, and more\\n" * 4000
tok = Tokenizer.train([text], 300)
want = tok.encode(text).tolist()
before = os.environ.get("TOKENIZERS_PARALLELISM")
child = os.fork()
if child == 0:
    signal.alarm(30)  # a child that waits for threads it does not have must end
    os._exit(0 if tok.encode(text).tolist() == want else 3)
status = os.waitpid(child, 0)[1]
assert os.environ.get("TOKENIZERS_PARALLELISM") == before
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("setting", [None, "true", "false"])
def test_a_forked_child_encodes_and_nothing_is_printed(setting):
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    if setting:
        env["TOKENIZERS_PARALLELISM"] = setting
    done = subprocess.run(
        [sys.executable, "-c", FORKING], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_fork_hooks_leave_the_parent_as_it_was(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    module._before_fork()
    assert os.environ["TOKENIZERS_PARALLELISM"] == ""
    module._after_fork_in_parent()
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    module._before_fork()
    module._after_fork_in_parent()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    module._after_fork_in_child()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
