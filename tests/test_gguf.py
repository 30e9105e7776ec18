"""GGUF files: every type is read as its package means it, and what is written is read by others."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats_cases as cases
import gguf
import numpy as np
import pytest
from conftest import prose
from formats_cases import TINY, TOKENIZER, WIDE, random_weights, replaced, write_gguf

import crystalline
from crystalline.checkpoints.checkpoint import load_model, save_model
from crystalline.config import ModelConfig
from crystalline.data.splitting import KNOWN, pre_tokenizer
from crystalline.data.tokenizer import Tokenizer
from crystalline.decoder.scaling import RopeScaling
from crystalline.errors import CheckpointError, ConfigError, CrystallineError, UsageError
from crystalline.formats.convert import export_model, import_model
from crystalline.formats.gguf_read import TYPES, read_gguf

KNOWN_WORDS = pre_tokenizer("gpt-2")
LLAMA3 = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)


def same(a: dict[str, np.ndarray], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], np.asarray(b[n])) for n in a)


def made(folder: Path, c: ModelConfig, tokenizer: Tokenizer = TOKENIZER) -> dict[str, np.ndarray]:
    weights = random_weights(c)
    save_model(folder, c, tokenizer, weights)
    return weights


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_read_as_the_package_dequantises_it(tmp_path: Path, kind: str) -> None:
    want = write_gguf(tmp_path / "m.gguf", WIDE, kind)
    import_model(tmp_path / "m.gguf", tmp_path / "m")
    config, tokenizer, weights = load_model(tmp_path / "m")
    assert config == WIDE
    assert same(want, weights)
    text = prose(50, seed=3) + "é☃ 日本語 1984  5\n"
    assert tokenizer.encode(text).tolist() == TOKENIZER.encode(text).tolist()
    assert tokenizer.eot == TOKENIZER.eot


def test_transformers_reads_the_same_logits_from_the_file(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "m.gguf", replace(WIDE, tied=True), "Q4_K")
    import_model(tmp_path / "m.gguf", tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    ids = np.arange(20, dtype=np.int64) * 7 % 300
    with torch.no_grad():
        want = theirs(torch.tensor(ids[None])).logits[0].float().numpy()
    got = crystalline.load(tmp_path / "m").logits(ids)
    assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()


def test_the_output_is_tied_where_the_file_has_none(tmp_path: Path) -> None:
    want = write_gguf(tmp_path / "m.gguf", replace(WIDE, tied=True))
    source = read_gguf(str(tmp_path / "m.gguf"))
    assert source.config.tied
    assert same(want, source.weights)


def test_ids_that_nothing_has_stay_free(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", TINY)
    source = read_gguf(str(tmp_path / "m.gguf"))
    assert source.config.vocab_size == 311 > source.tokenizer.vocab_size == 300


@pytest.mark.parametrize("pre", sorted(KNOWN))
def test_words_are_cut_as_the_file_says(tmp_path: Path, pre: str) -> None:
    write_gguf(tmp_path / "m.gguf", TINY, pre=pre)
    made = read_gguf(str(tmp_path / "m.gguf")).tokenizer
    text = "In 1984, it's  5 o'clock!!\n\n  x = [22, 333];\n" + prose(30)
    assert made.decode(made.encode(text)) == text
    words = [w for w, _ in made._backend.pre_tokenizer.pre_tokenize_str("ab 1984  5!\n x")]
    assert words == {
        "gpt-2": ["ab", "Ġ1984", "Ġ", "Ġ5", "!", "Ċ", "Ġx"],
        "smollm": ["ab", "Ġ", "1", "9", "8", "4", "ĠĠ", "5", "!", "Ċ", "Ġx"],
        "llama-bpe": ["ab", "Ġ", "198", "4", "Ġ", "Ġ", "5", "!Ċ", "Ġx"],
        "qwen2": ["ab", "Ġ", "1", "9", "8", "4", "Ġ", "Ġ", "5", "!Ċ", "Ġx"],
        "default": ["ab", "Ġ", "198", "4", "Ġ", "Ġ", "5", "!", "Ċ", "Ġx"],
    }[pre]


def test_special_tokens_and_the_template_are_kept_and_typed_ones_are_text(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        tokens = list(writer.kv_data[0]["tokenizer.ggml.tokens"].value)
        types = list(writer.kv_data[0]["tokenizer.ggml.token_type"].value)
        tokens[300:303], types[300:303] = ["<s>", "<end>", "§tool§"], [3, 3, 4]
        replaced(writer, "tokenizer.ggml.tokens", tokens)
        replaced(writer, "tokenizer.ggml.token_type", types)
        replaced(writer, "tokenizer.ggml.bos_token_id", 300)
        replaced(writer, "tokenizer.ggml.eos_token_id", 301)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{{ messages }}")

    write_gguf(tmp_path / "m.gguf", TINY, change=change)
    import_model(tmp_path / "m.gguf", tmp_path / "m")
    made = load_model(tmp_path / "m")[1]
    assert (made.bos, made.eot, made.adds_bos) == (300, 301, True)
    assert made.chat_template == "{{ messages }}"
    ids = made.encode("a<s>b<end>§tool§").tolist()
    assert 300 not in ids and 301 not in ids and ids[-1] == 302
    assert made.decode(ids) == "a<s>b<end>§tool§"
    export_model(tmp_path / "m", tmp_path / "again.gguf")
    again = read_gguf(str(tmp_path / "again.gguf")).tokenizer
    assert again.to_json() == made.to_json()
    assert (again.bos, again.eot, again.adds_bos) == (300, 301, True)
    assert again.chat_template == made.chat_template


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, replace(TINY, tied=False, rope_scaling=LLAMA3),
                                    replace(WIDE, rope_scaling=RopeScaling("linear", 4.0))],
                         ids=["tied", "llama3", "linear"])  # fmt: skip
def test_out_and_in_again_changes_no_bit(tmp_path: Path, config: ModelConfig) -> None:
    weights = made(tmp_path / "m", config)
    said = export_model(tmp_path / "m", tmp_path / "new" / "m.gguf")
    assert said["bytes"] == (tmp_path / "new" / "m.gguf").stat().st_size
    import_model(tmp_path / "new" / "m.gguf", tmp_path / "again")
    got, tokenizer, back = load_model(tmp_path / "again")
    assert got == config
    assert same(weights, back)
    text = prose(50, seed=3) + "é☃ 日本語 1984  5\n"
    assert tokenizer.encode(text).tolist() == TOKENIZER.encode(text).tolist()
    export_model(tmp_path / "again", tmp_path / "m.gguf")
    first, second = (read_gguf(str(p)) for p in (tmp_path / "new" / "m.gguf", tmp_path / "m.gguf"))
    assert first.tokenizer.to_json() == second.tokenizer.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(("kind", "share"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 254)])
def test_narrow_types_are_off_by_their_rounding_alone(
    tmp_path: Path, kind: str, share: float
) -> None:
    """Half a unit of the last place of the value; for q8_0 of the largest of 32, and a bit for
    its scale, which is an F16."""
    weights = made(tmp_path / "m", WIDE)
    export_model(tmp_path / "m", tmp_path / "m.gguf", kind=kind)
    back = read_gguf(str(tmp_path / "m.gguf")).weights
    for name, w in weights.items():
        got = np.asarray(back[name])
        if w.ndim == 1:
            assert np.array_equal(got, w)
            continue
        blocks = np.abs(w).reshape(-1, 32 if kind == "q8_0" else 1)
        scale = np.broadcast_to(blocks.max(1, keepdims=True), blocks.shape).reshape(w.shape)
        room = 1.2 if kind == "q8_0" else 1.0
        assert (np.abs(got - w) <= room * share * scale + 2.0**-25).all()
        assert not np.array_equal(got, w)


def test_rows_that_are_no_whole_blocks_are_written_in_f16(tmp_path: Path) -> None:
    weights = made(tmp_path / "m", TINY)  # rows of 40 and 52
    export_model(tmp_path / "m", tmp_path / "m.gguf", kind="q8_0")
    back = read_gguf(str(tmp_path / "m.gguf")).weights
    for name, w in weights.items():
        want = w if w.ndim == 1 else w.astype(np.float16).astype(np.float32)
        assert np.array_equal(np.asarray(back[name]), want)


def test_what_llama_cpp_asks_for_is_there(tmp_path: Path) -> None:
    made(tmp_path / "m", TINY)
    export_model(tmp_path / "m", tmp_path / "m.gguf", kind="bf16")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    meta = {name: field.contents() for name, field in reader.fields.items()}
    want = {
        "general.architecture": "llama", "general.type": "model", "general.name": "m",
        "general.file_type": 32, "general.quantization_version": 2, "llama.block_count": 2,
        "llama.context_length": 24, "llama.embedding_length": 40, "llama.feed_forward_length": 52,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 10, "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 311, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert {key: meta[key] for key in want} == want
    assert meta["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
    types = meta["tokenizer.ggml.token_type"]
    assert len(meta["tokenizer.ggml.tokens"]) == len(types) == 311
    assert (types[0], types[1], types[300:]) == (3, 1, [5] * 11)
    assert meta["tokenizer.ggml.tokens"][300] == "[PAD300]"


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    import tracemalloc

    config = replace(WIDE, layers=12)
    total = sum(w.nbytes for w in made(tmp_path / "m", config).values())
    for work in (lambda: export_model(tmp_path / "m", tmp_path / "m.gguf"),
                 lambda: import_model(tmp_path / "m.gguf", tmp_path / "again"),
                 lambda: export_model(tmp_path / "m", tmp_path / "hf", "hf")):  # fmt: skip
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < total / 3


def test_a_failed_export_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    save_model(tmp_path / "m", TINY, TOKENIZER, weights)
    export_model(tmp_path / "m", tmp_path / "m.gguf")
    before = (tmp_path / "m.gguf").read_bytes()
    with pytest.raises(UsageError, match=r"blk\.1\.ffn_up\.weight holds 1e\+06, but f16 ends"):
        export_model(tmp_path / "m", tmp_path / "m.gguf", kind="f16")
    assert (tmp_path / "m.gguf").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.gguf"]


def test_a_full_disk_is_told_in_a_line_and_leaves_nothing(tmp_path: Path) -> None:
    import resource
    import signal

    made(tmp_path / "m", WIDE)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"m\.gguf: cannot be written \("):
            export_model(tmp_path / "m", tmp_path / "m.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


# --- refusing -------------------------------------------------------------------------------------


def entry(key: str, value: Any) -> Any:
    return lambda writer: replaced(writer, key, value)


def extra_tensor(name: str, values: Any) -> Any:
    return lambda writer: writer.add_tensor(name, np.array(values, np.float32))


REFUSED = [
    ({"architecture": "qwen2"}, "architecture is 'qwen2', but crystalline computes llama"),
    ({"change": entry("llama.block_count", None)}, "llama.block_count is missing"),
    ({"change": lambda w: w.add_expert_count(8)}, "has 8 experts"),
    ({"change": lambda w: w.add_key_length(20)}, "attention.key_length is 20, but crystalline's"),
    ({"change": lambda w: w.add_rope_dimension_count(6)}, "rope.dimension_count is 6"),
    ({"change": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)}, "is 'yarn', but"),
    ({"change": extra_tensor("rope_freqs.weight", [1, 2, 3, 4, 9])}, "is not what Llama 3 models"),
    ({"change": extra_tensor("blk.0.attn_q.bias", [0.0] * 40)}, "layers have no biases"),
    ({"change": extra_tensor("blk.0.ffn_gate_inp.weight", [0.0])}, "have no these weights"),
    ({"skip": ("blk.1.ffn_up.weight",)}, "blk.1.ffn_up.weight is missing; fetch it again"),
    ({"skip": ("token_embd.weight",)}, "token_embd.weight is missing; fetch it again"),
    ({"change": entry("llama.feed_forward_length", 60)}, "is (52, 40), its metadata say (60, 40)"),
    ({"change": lambda w: w.add_uint16("split.count", 3)}, "join them with gguf-split --merge"),
    ({"change": entry("tokenizer.ggml.model", "llama")}, "its tokenizer is SentencePiece"),
    ({"change": entry("tokenizer.ggml.model", "bert")}, "its tokenizer is 'bert'"),
    ({"change": entry("tokenizer.ggml.merges", None)}, "tokenizer.ggml.merges is missing"),
    ({"change": entry("tokenizer.ggml.merges", ["x y"])}, "tokens and merges do not fit"),
    ({"change": entry("tokenizer.ggml.token_type", [1, 1])}, "do not fit together"),
    ({"change": entry("tokenizer.ggml.eos_token_id", 9000)}, "do not fit together"),
    ({"pre": "qwen3"}, "(tokenizer.ggml.pre), but crystalline knows"),
    ({"kind": "TQ1_0"}, "is TQ1_0, but crystalline reads F32, F16"),
]


@pytest.mark.parametrize(("how", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_not_read_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], message: str
) -> None:
    if how.get("kind"):
        monkeypatch.setitem(cases.SCALES, "TQ1_0", (52,))
    write_gguf(tmp_path / "m.gguf", WIDE if how.get("kind") else TINY, **how)
    with pytest.raises(CrystallineError, match=re.escape(message)) as info:
        import_model(tmp_path / "m.gguf", tmp_path / "m")
    assert str(info.value).startswith(f"{tmp_path}/m.gguf: ")
    assert "\n" not in str(info.value) and "; " in str(info.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("size", [7, 100, 5000, -100])
def test_a_file_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    write_gguf(tmp_path / "m.gguf", TINY)
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:size])
    with pytest.raises(CheckpointError, match="not a whole GGUF file"):
        import_model(tmp_path / "m.gguf", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(UsageError, match="are of the other byte order"):
        import_model(tmp_path / "m.gguf", tmp_path / "m")


def test_a_value_that_is_no_number_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        bad = np.full((52, 40), np.nan, np.float32)
        writer.add_tensor("blk.1.ffn_up.weight", bad)

    write_gguf(tmp_path / "m.gguf", TINY, change=change, skip=("blk.1.ffn_up.weight",))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds values that"):
        import_model(tmp_path / "m.gguf", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_without_the_package_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", TINY)
    made(tmp_path / "m", TINY)
    monkeypatch.setitem(sys.modules, "gguf", None)
    for fails in (lambda: import_model(tmp_path / "m.gguf", tmp_path / "x"),
                  lambda: export_model(tmp_path / "m", tmp_path / "y.gguf")):  # fmt: skip
        with pytest.raises(UsageError, match=r"pip install 'crystalline\[gguf\]'"):
            fails()
    monkeypatch.undo()
    monkeypatch.delattr(gguf.ReaderField, "contents")
    with pytest.raises(UsageError, match=r"need gguf 0\.16, but an older one is installed"):
        import_model(tmp_path / "m.gguf", tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.gguf"]


def test_a_split_without_a_name_in_llama_cpp_is_not_written(tmp_path: Path) -> None:
    import json

    for part, value, message in (
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [
            {"type": "Punctuation"}, KNOWN_WORDS]},
         "its pre_tokenizer has no counterpart"),
        ("normalizer", {"type": "NFC"}, "its normalizer has no counterpart"),
        ("model", {"ignore_merges": True}, "its ignore_merges is True, but llama.cpp does"),
    ):  # fmt: skip
        described = json.loads(TOKENIZER.to_json())
        described[part] = described[part] | value if part == "model" else value
        other = Tokenizer.from_json(json.dumps(described).encode(), "here")
        save_model(tmp_path / "m", TINY, other, random_weights(TINY))
        with pytest.raises(UsageError, match=message):
            export_model(tmp_path / "m", tmp_path / "m.gguf")


def test_other_files_and_folders_are_not_written_over(tmp_path: Path) -> None:
    made(tmp_path / "m", TINY)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there and no GGUF file"):
        export_model(tmp_path / "m", tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"is a folder; name a file"):
        export_model(tmp_path / "m", tmp_path)
    with pytest.raises(UsageError, match="is there already; choose a new folder"):
        export_model(tmp_path / "m", tmp_path, "hf")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("to", "kind", "message"),
    [("ggml", "f32", "to is 'ggml', but must be one of gguf, hf; choose gguf"),
     ("gguf", "q4_k", "type is 'q4_k', but must be one of f32, f16, bf16, q8_0"),
     ("hf", "f16", "type is 'f16', but a Hugging Face folder is written as it was trained")],
)  # fmt: skip
def test_other_targets_are_refused(tmp_path: Path, to: str, kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model(tmp_path / "m", tmp_path / "x", to, kind)
