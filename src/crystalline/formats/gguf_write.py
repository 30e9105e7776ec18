"""A model as a GGUF file that llama.cpp reads: tensor by tensor, complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crystalline import files
from crystalline.checkpoints.pending import Pending
from crystalline.config import ModelConfig, parameter_count
from crystalline.data.tokenizer import Tokenizer
from crystalline.decoder.positions import scaling_factors
from crystalline.errors import CheckpointError, UsageError
from crystalline.formats.llama_names import ROPE_FACTORS, gguf_names, heads_of, interleaved
from crystalline.formats.package import gguf_package
from crystalline.formats.vocabulary import Vocabulary, from_tokenizer

# Name -> the package's name of a tensor's type, and of the file's.
KINDS = {
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
HALF_MOST = 65504.0  # the largest number of F16


def write_gguf(
    path: str, name: str, config: ModelConfig, tokenizer: Tokenizer,
    weights: Mapping[str, Pending], kind: str, report: Callable[[int], None],
) -> None:  # fmt: skip
    """Writes the model to ``path``; matrices as ``kind`` says, norm gains in F32.

    With q8_0, matrices whose rows are no whole number of 32 are written in F16.  ``report`` is
    told the bytes of float32 weights that were written.  Raises UsageError before anything is
    written, CheckpointError afterwards; then the file that was there is untouched.
    """
    gguf = gguf_package()
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(None, "llama")
    vocabulary = from_tokenizer(tokenizer, config.vocab_size, name)
    _say_model(gguf, writer, name, config, kind)
    _say_tokenizer(writer, vocabulary)
    extra: dict[str, npt.NDArray[np.float32]] = {}
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        factors = scaling_factors(config.head_dim, config.rope_theta, config.rope_scaling)
        extra[ROPE_FACTORS] = factors
    names = gguf_names(config)
    kinds = {n: _kind(gguf, w.shape, kind) for n, w in weights.items()}
    for key, array in extra.items():
        writer.add_tensor_info(key, array.shape, array.dtype, array.nbytes, _of(gguf, "F32"))
    for key, weight in weights.items():
        size = _bytes(gguf, weight.shape, kinds[key])
        # A float32 in its name only: the type says how it is stored.
        writer.add_tensor_info(names[key], weight.shape, weight.dtype, size, kinds[key])
    new = path + ".new"
    try:
        files.make_folder(os.path.dirname(os.path.abspath(path)))
        writer.write_header_to_file(Path(new))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in extra.values():
            writer.write_tensor_data(array)
        for key, weight in weights.items():
            array = interleaved(np.asarray(weight), heads_of(config, key))
            writer.write_tensor_data(_stored(gguf, names[key], array, kinds[key]))
            report(weight.nbytes)
        writer.close()
        _settle(new)
        os.replace(new, path)
        files.sync_folder(os.path.dirname(os.path.abspath(path)))
    except BaseException as error:
        with contextlib.suppress(Exception):
            writer.close()
        with contextlib.suppress(OSError):
            files.remove(new)
        if isinstance(error, OSError):
            raise CheckpointError(_advice(path, error, weights)) from error
        raise


def _advice(path: str, error: OSError, weights: Mapping[str, Pending]) -> str:
    # The array's own writing tells no error number, only how much it got rid of.
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    need = sum(w.nbytes for w in weights.values())
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and free < need):
        return f"{path}: disk full while writing it; free {need / 2**20:,.0f} MiB"
    return f"{path}: cannot be written ({error.strerror or error}); choose a path that can be"


def _settle(path: str) -> None:
    """Forces the file to the disk and reads it back from there."""
    written = files.stamp_of_file(path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if files.stamp_of_file(path) != written:
        raise OSError(errno.EIO, "the disk returned other bytes than were written")


def _of(gguf: Any, name: str) -> Any:
    return gguf.GGMLQuantizationType[name]


def _kind(gguf: Any, shape: tuple[int, ...], kind: str) -> Any:
    """How a tensor is stored: vectors are few and matter, so they stay F32."""
    if len(shape) == 1:
        return _of(gguf, "F32")
    if kind == "q8_0" and shape[-1] % gguf.GGML_QUANT_SIZES[_of(gguf, "Q8_0")][0]:
        return _of(gguf, "F16")
    return _of(gguf, KINDS[kind][0])


def _bytes(gguf: Any, shape: tuple[int, ...], kind: Any) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(block) * int(size)


def _stored(gguf: Any, name: str, array: npt.NDArray[np.float32], kind: Any) -> Any:
    if kind == _of(gguf, "F16"):
        most = float(np.abs(array).max())
        if most > HALF_MOST:
            raise UsageError(
                f"{name} holds {most:g}, but f16 ends at {HALF_MOST:g}; choose bf16 or f32"
            )
    stored = gguf.quants.quantize(np.ascontiguousarray(array), kind)
    return np.ascontiguousarray(stored)


def _say_model(gguf: Any, writer: Any, name: str, c: ModelConfig, kind: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(parameter_count(c), 0, 0, 0))
    writer.add_block_count(c.layers)
    writer.add_context_length(c.seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_vocab_size(c.vocab_size)
    writer.add_file_type(int(gguf.LlamaFileType[KINDS[kind][1]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    scaling = c.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling is not None:
        writer.add_rope_scaling_orig_ctx_len(int(scaling.original))


def _say_tokenizer(writer: Any, v: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(v.pre)
    writer.add_token_list(v.tokens)
    writer.add_token_types(v.types)
    writer.add_token_merges(v.merges)
    writer.add_bos_token_id(v.bos)
    writer.add_eos_token_id(v.eos)
    writer.add_pad_token_id(v.eos)
    writer.add_add_bos_token(v.add_bos)
    writer.add_add_space_prefix(False)
    if v.chat_template is not None:
        writer.add_chat_template(v.chat_template)
