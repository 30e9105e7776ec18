"""The share of a model's code that parses, and that of real code cut to the same lengths."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command import invoke
from conftest import TINY, prose

import crystalline
from crystalline.__main__ import main
from crystalline.errors import DataError
from crystalline.evaluation.code import Real, _judged, evaluate_code
from crystalline.evaluation.parsing import LANGUAGES, beginnings, compiles, judges, whole_lines
from crystalline.inference.model import Model

FUNCTION = """#include <stdio.h>

struct point {name} {{
    int x, y;
}};

int main_{name}(void);

static void {name}(int *count)
{{
    for (int i = 0; i < {n}; i++)
        *count += i;
}}

int main(void)
{{
    int count = {n};
    {name}(&count);
    return count;
}}
"""


def source(i: int) -> str:
    return "".join(FUNCTION.format(name=f"f{i}_{k}", n=k * i) for k in range(5))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on twelve C files and four of prose."""
    root = tmp_path_factory.mktemp("code")
    (root / "texts").mkdir()
    for i in range(12):
        (root / "texts" / f"{i:02}.c").write_text(source(i))
    for i in range(4):
        (root / "texts" / f"{i:02}.md").write_text(prose(60, seed=i))
    crystalline.train(root / "texts", root / "m", **TINY, steps=60, lr=3e-3)
    return root / "m"


# --- judging --------------------------------------------------------------------------------------

C = [
    ("int main(void)\n{\n    return 0;\n}\n", True),
    ("#include <stdio.h>\nstruct a {\n    int x;\n};\n", True),
    ("struct a;\n\n/* what follows */\n", True),
    ("int main(void)\n{\n    return 0;\n", False),  # only a brace is missing
    ("}\n", False),
    ("the quick brown fox jumps\n", False),
    ("#if A\nint a;\n", False),
]
PYTHON = [
    ("def f(x):\n    return x\n", True),
    ("import os\nfrom a import (b,\n               c)\n", True),
    ("import os\nfrom a import (b,\n", False),
    ("class A:\n", False),
    ("def f(:\n    pass\n", False),
]


@pytest.mark.parametrize(("text", "good"), C)
def test_c_parses_without_an_error_or_nothing_of_it_counts(text: str, good: bool) -> None:
    assert judges("c").keys() == {"tree-sitter"}
    assert judges("c")["tree-sitter"](text) is good


@pytest.mark.parametrize(("text", "good"), PYTHON)
def test_python_is_judged_by_two(text: str, good: bool) -> None:
    both = judges("python")
    assert both.keys() == {"tree-sitter", "python"}
    assert both["python"](text) is good
    if text != "class A:\n":  # an empty class is an error to one of them only
        assert both["tree-sitter"](text) is good


def test_what_python_cannot_even_read_does_not_compile(recwarn: pytest.WarningsRecorder) -> None:
    for text in ("x = '\0'\n", "(" * 5000 + "\n", "-" * 200_000 + "1\n"):
        assert compiles(text) is False
    assert compiles("x = '\\d'\n") is True
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "cut"), [("a\nb", "a\n"), ("a\nb\n", "a\nb\n"), ("ab", ""), ("", ""), ("\n", "\n")]
)
def test_a_piece_is_cut_at_its_last_complete_line(text: str, cut: str) -> None:
    assert whole_lines(text) == cut


def test_a_piece_without_a_complete_line_does_not_count() -> None:
    """An empty text would parse."""
    assert judges("c")["tree-sitter"]("")
    one, two = _judged(["a", "b"], ["int x;", "int x;\nint"], judges("c"))
    assert (one.text, one.parses) == ("", {"tree-sitter": False})
    assert (two.text, two.parses) == ("int x;\n", {"tree-sitter": True})


# --- real code ------------------------------------------------------------------------------------


def test_lines_begin_with_a_prompt() -> None:
    text = "struct a;\n  struct b;\nstructure c;\nstruct\n\ntypedef struct d;\nstruct d {\n"
    assert [text[at:].partition("\n")[0] for at in beginnings(text, "struct")] == [
        "struct a;", "struct", "struct d {",
    ]  # fmt: skip
    assert beginnings("a\n\n \n b\n", "") == [0, 5]


def test_real_pieces_are_as_long_and_begin_alike() -> None:
    texts = ["int main(void)\n{\n}\n", "x\nint main(int argc)\n{\n    return 1;\n}\n"]
    real = Real(texts, 0)
    assert {real.like("int main", 30) for _ in range(20)} == {texts[1][2:32]}  # one is too short
    assert {len(real.like("int main", 5)) for _ in range(20)} == {5}
    assert len({real.like("int main", 15) for _ in range(40)}) == 2
    assert {real.like("int main", 1000) for _ in range(40)} == {texts[0], texts[1][2:]}
    assert real.same_start == 120


def test_a_prompt_that_is_nowhere_gives_way() -> None:
    real = Real(["a = 1;\nvoid f(int x);\nb = 2;\nvoided;\n"], 0)
    assert {real.like("void function", 6) for _ in range(30)} == {"void f"}
    assert {real.like("int main", 1) for _ in range(60)} == {"a", "v", "b"}
    assert real.same_start == 0
    with pytest.raises(DataError, match="the held-out code is blank; name files"):
        Real([" \n\n"], 0).like("struct", 3)


def test_real_pieces_follow_the_seed() -> None:
    texts = [source(i) for i in range(12)]

    def some(seed: int) -> list[str]:
        real = Real(texts, seed)
        return [real.like("struct", 80) for _ in range(10)]

    assert some(1) == some(1) != some(2)


# --- a model's code -------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["c", "python"])
def test_pieces_are_the_models_own(model: Path, language: str) -> None:
    texts = [model.parent / "texts"]
    got = evaluate_code(model, texts, language, samples=18, max_tokens=40, seed=5, temperature=0.7)
    prompts = LANGUAGES[language].prompts
    speaker = crystalline.load(model)
    for i, (piece, real) in enumerate(zip(got.generated, got.real, strict=True)):
        assert piece.prompt == real.prompt == prompts[i % len(prompts)]
        text = piece.prompt + speaker.generate(
            piece.prompt, seed=5 + i, max_tokens=40, temperature=0.7
        )
        assert piece.text == whole_lines(text)
        assert real.text == whole_lines(real.text) and len(real.text) <= len(text)
    assert sum(got.prompts().values()) == 18
    said = got.described()
    for side, pieces in (("generated", got.generated), ("real", got.real)):
        for judge in judges(language):
            passed = [piece.parses[judge] for piece in pieces]
            assert said["shares"][side][judge] == sum(passed) / 18
            parts = [one[side][judge] * one["pieces"] for one in said["prompts"].values()]
            assert sum(parts) == pytest.approx(sum(passed))


def test_only_code_is_the_measure_of_code(model: Path) -> None:
    texts = model.parent / "texts"
    options = {"samples": 2, "max_tokens": 5}
    assert evaluate_code(model, [texts], **options).documents == 12
    assert evaluate_code(model, [texts], "python", **options).documents == 16  # none is Python
    # Held-out texts have no names: their lines tell.
    own = evaluate_code(model, **options)
    code = ["struct" in text for text in _held_out_texts(model)]
    assert own.documents == sum(code) > 0 and own.same_start == 2


def _held_out_texts(folder: Path) -> list[str]:
    split = crystalline.data.shards.TokenStore.open(folder).val
    tokenizer = crystalline.load(folder).tokenizer
    pairs = zip(split.offsets, split.offsets[1:], strict=False)
    return [tokenizer.decode(split.slice(int(a), int(b))) for a, b in pairs]


def test_a_model_that_has_learnt_by_heart_reaches_the_real_share(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing what is really there, a model parses as often as real code does."""
    texts = [source(i) for i in range(12)]

    def recite(self: Model, prompts: list[str], **options: Any) -> list[str]:
        pieces = []
        for i, prompt in enumerate(prompts):
            text = texts[(options["seed"] + i) % 12]
            at = (beginnings(text, prompt) or [0])[0] + len(prompt)
            pieces.append(text[at : at + 170])
        return pieces

    monkeypatch.setattr(Model, "generate_batch", recite)
    got = evaluate_code(model, [model.parent / "texts"], samples=16)
    for prompt in ("int main", "struct", "#include"):
        written, real = (
            got.count(pieces, "tree-sitter", prompt) for pieces in (got.generated, got.real)
        )
        # A struct is followed by a function that the cut goes through.
        assert written == real == (0 if prompt == "struct" else 4)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_is_the_same_on_any_threads(model: Path) -> None:
    args = ["eval", model, "--code", "c", "--samples", 9, "--max-tokens", 60]
    one, two = (invoke(*args, "--threads", n) for n in (1, 2))
    assert one == two
    lines = one.splitlines()
    assert lines[0].split() == ["prompt", "pieces", "written", "parses", "real", "parses"]
    assert [line.split("  ")[0] for line in lines[1:6]] == [*LANGUAGES["c"].prompts, "all"]
    assert "pieces of at most 60 tokens, temperature 0.8, seed 0, cut at the last" in one
    assert one.count("\n--- ") == 3
    said = json.loads(invoke(*args, "--json"))
    assert said["language"] == "c" and said["pieces"] == 9 == len(said["written"])
    shares = [f"{100 * said['shares'][side]['tree-sitter']:.0f}" for side in ("generated", "real")]
    assert [word for word in lines[5].split() if word.isdecimal()] == ["9", *shares]


def test_python_has_a_column_more(model: Path) -> None:
    texts = model.parent / "texts"
    said = invoke("eval", model, texts, "--code", "python", "--samples", 3, "--max-tokens", 9)
    assert said.splitlines()[0].split("  ")[-1] == "real compiles"


@pytest.mark.parametrize("missing", ["tree_sitter", "tree_sitter_c"])
def test_without_the_packages_the_command_says_what_to_install(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["eval", str(model), "--code", "c"]) == 2
    name = missing.replace("_", "-")
    assert capsys.readouterr().err == (
        f"crystalline: error: --code c needs {name}, which is not installed; "
        "pip install 'crystalline[code]'\n"
    )


def test_packages_of_different_ages_are_told(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pointer: Any) -> None:
        raise ValueError("Incompatible Language version 15. Must be between 13 and 14")

    monkeypatch.setattr("tree_sitter.Language", refuse)
    assert main(["eval", str(model), "--code", "c"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "tree-sitter-c do not fit together (Incompatible" in err
    assert err.endswith("; pip install --upgrade 'crystalline[code]'\n")
