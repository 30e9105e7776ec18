"""crystalline lattice: what it shows is what the library says, and the picture is as told."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import invoke, rows_of
from matplotlib.image import imread

from crystalline.__main__ import main
from crystalline.lattice import angular, constants, picture


def said(*words: Any) -> Any:
    return json.loads(invoke("lattice", "--json", *words))


def test_constants_in_words() -> None:
    lines = invoke("lattice").splitlines()
    rows = {row[0]: row[1:] for row in rows_of(lines, "name")}
    assert rows["VECTOR_CULMINATION"] == ["144000", "144000.0", "2^7", "*", "3^2", "*", "5^3"]
    assert rows["EINSTEIN_LAMBDA"][:2] == ["1/48000", "2.0833333333333333e-05"]
    assert rows["BOUNDARY_LOWER"][2:] == ["prime"]
    assert rows["BOUNDARY_UPPER"][2:] == ["11", "*", "13", "*", "19", "*", "53"]
    assert rows["GOLDEN_RATIO"][-1] == "1.618033988749895"
    assert ("143999 and 144001 are no twin primes; the nearest are (143879, 143881) and "
            "(144071, 144073)") in lines  # fmt: skip
    numbers = lines[lines.index("DIMENSIONAL_FREQUENCIES") + 1].split()
    assert tuple(map(int, numbers)) == constants.DIMENSIONAL_FREQUENCIES
    text = "".join(lines[lines.index("PLIMPTON_322") + 1 :]).replace(" ", "")
    assert text == "".join(str(row).replace(" ", "") for row in constants.PLIMPTON_322)
    assert max(map(len, lines)) <= 100


def test_constants_as_json() -> None:
    found = said()["constants"]
    assert found["EINSTEIN_LAMBDA"] == {"exact": "1/48000", "float": 3 / 144000,
                                        "fixed_64": round(2**64 / 48000)}  # fmt: skip
    assert found["GOLDEN_RATIO"]["fixed_64"] == constants.as_fixed(constants.GOLDEN_RATIO, 64)
    assert found["boundary_pair_is_twin_prime"] is False
    assert found["nearest_twin_primes"] == [[143879, 143881], [144071, 144073]]
    assert [tuple(row) for row in found["PLIMPTON_322"]] == list(constants.PLIMPTON_322)


def test_theta_for_given_arguments() -> None:
    words = ("--theta", "13,6,3,.086", "--theta", "144001,13337,1,m", "--theta", "2,1")
    lines = invoke("lattice", *words).splitlines()
    assert [row[5] for row in rows_of(lines, "p")] == [
        "70.587659900", "135594.196703926", "10.333969410",
    ]  # fmt: skip
    assert "near" in lines[2] and "near" not in lines[1] + lines[3]
    first, second, third = said(*words)["theta"]
    assert first == {"p": 13, "k": 6, "n": 3, "lam": 0.086,
                     **angular.angle(13, 6, 3, 0.086)._asdict()}  # fmt: skip
    assert second["lam"] == 0.343 and second["near_boundary"] is True
    assert (third["n"], third["lam"], third["hour"]) == (0, 0.0, 7)


def test_primes_of_a_range_and_of_a_group() -> None:
    assert invoke("lattice", "--primes", 2, 30).split() == [
        "2", "3", "5", "7", "11", "13", "17", "19", "23", "29",
    ]  # fmt: skip
    assert invoke("lattice", "--primes", 100, 200, "--group", 7).split() == [
        "103", "127", "139", "151", "163", "199",
    ]  # fmt: skip
    assert invoke("lattice", "--primes", 24, 28) == ""
    assert said("--primes", 2, 30, "--group", 2)["primes"] == {
        "lo": 2, "hi": 30, "group": 2, "primes": [2],
    }  # fmt: skip


def test_many_primes_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = invoke("lattice", "--primes", 1, 2000)
    monkeypatch.setattr("crystalline.commands.lattice.LINES", 7)
    assert invoke("lattice", "--primes", 1, 2000) == whole
    assert whole.count("\n") == 303


def test_the_hierarchy() -> None:
    lines = invoke("lattice", "--hierarchy").splitlines()
    assert rows_of(lines, "depth")[3] == ["3", "1,728", "1,885", "27"]
    spheres = rows_of(lines, "group")
    assert [row[:3] for row in spheres[2:4]] == [["2", "60", "1"], ["3", "90", "2"]]
    assert len(spheres) == 12
    for row in spheres:
        assert abs(math.hypot(*map(float, row[3:])) - 2) < 2e-4
    found = said("--hierarchy")["hierarchy"]
    assert [level["total"] for level in found["levels"][:4]] == [1, 13, 157, 1885]
    assert found["spheres"][11]["quadrant"] == 4 and len(found["spheres"][11]["centre"]) == 3


def test_several_at_once_are_parted_by_a_line() -> None:
    words = ("--theta", "2,1", "--hierarchy", "--primes", 2, 5)
    parts = invoke("lattice", *words).split("\n\n")
    assert [part.split()[0] for part in parts] == ["p", "depth", "group", "2"]
    assert list(said(*words)) == ["theta", "hierarchy", "primes"]


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pixels of pure colour: even over all groups at the left, of four groups at the right."""
    path = tmp_path / "spiral.png"
    assert main(["lattice", "--plot", str(path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == f"drawn: {path}\n"
    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    height, width = pixels.shape[:2]
    discs = pixels[: int(height * 0.89)]  # without the legend
    left, right = discs[:, : width // 2], discs[:, width // 2 :]
    for half, groups in ((left, range(12)), (right, (1, 5, 7, 11))):
        found = np.array([(half == _rgb(colour)).all(axis=2).sum() for colour in picture.COLOURS])
        even = found.sum() / len(groups)
        assert all(abs(found[g] - even) < 0.2 * even for g in groups)
        assert all(found[g] < 100 for g in set(range(12)) - set(groups))
        _is_a_circle(half)


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _is_a_circle(half: np.ndarray) -> None:
    """The boundary is as far from the middle as the 13,343rd of 20,000 primes, all the way round.

    The disc is found by its colours, so the words above it do not count.
    """
    colourful = half.max(axis=2) - half.min(axis=2) > 40
    rows, columns = np.flatnonzero(colourful.any(axis=1)), np.flatnonzero(colourful.any(axis=0))
    middle = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    radius = (rows[-1] - rows[0]) / 2 * math.sqrt(13343.5 / 20000)
    for turn in np.linspace(0, 2 * np.pi, 60, endpoint=False):
        y, x = (round(m + radius * f(turn)) for m, f in zip(middle, (np.sin, np.cos), strict=True))
        darkest = half[y - 6 : y + 7, x - 6 : x + 7].sum(axis=2).min()
        assert darkest < 200, (turn, darkest)


def test_the_picture_as_json(tmp_path: Path) -> None:
    path = str(tmp_path / "spiral.png")
    assert said("--plot", path) == {"plot": path}
    assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_the_last_prime_of_the_picture_is_its_20000th() -> None:
    from crystalline.lattice.abacus import Abacus

    primes = list(Abacus(2, picture.LAST))
    assert len(primes) == picture.SHOWN and primes[-1] == picture.LAST


def test_without_matplotlib_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["lattice", "--plot", str(tmp_path / "x.png")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("crystalline: error: --plot needs matplotlib")
    assert err.endswith("pip install 'crystalline[plot]'\n") and not list(tmp_path.iterdir())


FORM = "expected P,K or P,K,N or P,K,N,LAM, such as 5,3,1,0.343 or 5,3,1,m. See crystalline lattice"


@pytest.mark.parametrize(("words", "says"), [
    ("--theta 1", f"'1'; {FORM}"),
    ("--theta 1,2,3,4,5", f"'1,2,3,4,5'; {FORM}"),
    ("--theta 1,2,x", f"'1,2,x'; {FORM}"),
    ("--theta 1,2,3,", f"'1,2,3,'; {FORM}"),
    ("--theta 1.5,2", f"'1.5,2'; {FORM}"),
    ("--theta 1,-2", "k is -2; expected an integer from 0 to 2^64 - 1"),
    ("--theta 2,18446744073709551616",
     "k is 18446744073709551616; expected an integer from 0 to 2^64 - 1"),
    ("--theta 2,1,1,1e999", "lam is inf; expected a finite number"),
    ("--primes 5 4", "lo is 5; expected an integer from 0 to hi 4"),
    ("--primes -5 4", "lo is -5; expected an integer from 0 to 2^64 - 1"),
    ("--primes 5 18446744073709551616",
     "hi is 18446744073709551616; expected an integer from 0 to 2^64 - 1"),
    ("--primes 5 6.5", "'6.5' is not a valid integer. See crystalline lattice --help"),
    ("--primes 5 60 --group 12", "group is 12; expected an integer from 0 to 11"),
    ("--group 3", "--group chooses among --primes; say both."),
    ("--plot picture.jpg", "picture.jpg: expected a name that ends in .png; a PNG file is written"),
])  # fmt: skip
def test_bad_arguments(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lattice", *words.split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and says in shown.err and not shown.out


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lattice", "--plot", str(tmp_path / "no" / "x.png")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No such file or directory" in err
