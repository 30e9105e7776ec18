"""A picture of the spiral: the first 20,000 primes, each at its turn, coloured by its group.

The k-th prime stands at the angle k pi (1 + sqrt 5) and the distance sqrt k, so that every prime
has the same room.  Twice: coloured by the group of its token, which is token mod 12 and even over
all twelve; and by the group of the prime itself, mod 12, of which primes above 3 know only four.
The circle is the boundary, between the primes 143999 and 144013.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline.errors import UsageError
from crystalline.lattice.angular import turns
from crystalline.lattice.constants import SYMMETRY_GROUPS, VECTOR_CULMINATION

SHOWN = 20_000  # primes
LAST = 224_737  # the 20,000th
INK, PAPER = "#20242c", "#ffffff"
COLOURS = (  # a wheel of even lightness, for the hours of the clock
    "#fd736d", "#de6f00", "#d59900", "#909d00", "#54bf5c", "#00b28c",
    "#00c1d7", "#009fea", "#709fff", "#9b79ee", "#d97bde", "#df5e97",
)  # fmt: skip


def draw_spiral(path: str | os.PathLike[str]) -> None:
    """Draw the spiral into a file, whose name ends in .png.

    UsageError for another ending, or if matplotlib is missing; OSError if it cannot be written.
    """
    path = os.fspath(path)
    if not path.lower().endswith(".png"):
        raise UsageError(f"{path}: expected a name that ends in .png; a PNG file is written")
    figure = _figure(figsize=(16, 9.4), dpi=160, facecolor=PAPER)
    from crystalline.lattice.abacus import Abacus

    primes = np.fromiter(Abacus(2, LAST), np.int64, SHOWN)
    tokens = np.arange(SHOWN)
    _panel(figure.add_axes((0.005, 0.09, 0.49, 0.785)), tokens, primes,
           "by the group of its token: token mod 12")  # fmt: skip
    _panel(figure.add_axes((0.505, 0.09, 0.49, 0.785)), primes, primes,
           "by its own group: prime mod 12")  # fmt: skip
    figure.text(0.5, 0.955, f"The spiral of the first {SHOWN:,} primes", ha="center",
                color=INK, size=19, weight="bold")  # fmt: skip
    figure.text(0.5, 0.922, "the k-th prime at angle k \u03c0 (1 + \u221a5), at distance \u221ak",
                ha="center", color=INK, size=12)  # fmt: skip
    figure.savefig(path, format="png")


def _figure(**sizes: Any) -> Any:
    """A figure that no window shows: nothing of pyplot, which keeps what it makes."""
    try:
        module: Any = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UsageError(
            f"--plot needs matplotlib, which cannot be imported ({error}); "
            "pip install 'crystalline[plot]'"
        ) from error
    return module.Figure(**sizes)


def _panel(axes: Any, grouped: NDArray[Any], primes: NDArray[np.int64], title: str) -> None:
    """One spiral: token t, at place t + 1, in the colour of its group."""
    place = np.arange(1, len(primes) + 1)
    turn, distance = turns(place), np.sqrt(place)
    x, y = distance * np.cos(turn), distance * np.sin(turn)
    groups = grouped % SYMMETRY_GROUPS
    axes.scatter(x, y, s=11, c=np.array(COLOURS)[groups], linewidths=0)
    _boundary(axes, int((primes < VECTOR_CULMINATION).sum()), float(distance[-1]))
    _legend(axes, np.bincount(groups, minlength=SYMMETRY_GROUPS))
    axes.set_title(title, color=INK, size=13, pad=6)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _boundary(axes: Any, below: int, rim: float) -> None:
    """A circle between the primes below and above 144000, and what it is."""
    radius = np.sqrt(below + 0.5)
    circle = np.linspace(0, 2 * np.pi, 721)
    for width, colour in ((5, PAPER), (2, INK)):
        axes.plot(radius * np.cos(circle), radius * np.sin(circle), color=colour, linewidth=width)
    slant = np.pi / 4
    axes.annotate(
        f"boundary {VECTOR_CULMINATION:,}\n{below:,} primes inside",
        xy=(radius * np.cos(slant), radius * np.sin(slant)),
        xytext=(rim * 0.66, rim * 0.97), color=INK, size=11, va="center",
        arrowprops={"arrowstyle": "-", "color": INK, "shrinkB": 0},
    )  # fmt: skip


def _legend(axes: Any, counts: NDArray[np.int64]) -> None:
    """The twelve groups in two rows, also those without a point, and how many each has."""
    half = SYMMETRY_GROUPS // 2
    order = [group for first in range(half) for group in (first, first + half)]
    marks = [axes.scatter([], [], s=46, color=COLOURS[group]) for group in order]
    names = [f"{group}: {counts[group]:,}" for group in order]  # a legend is filled by columns
    axes.legend(marks, names, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=half,
                title="group: primes", frameon=False, fontsize=11, labelcolor=INK,
                handletextpad=0.2, columnspacing=1.2)  # fmt: skip
