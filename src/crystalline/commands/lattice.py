"""crystalline lattice."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from itertools import islice
from typing import Any

import click

from crystalline.commands.common import AS_JSON, columns
from crystalline.errors import tame

LEVELS = 7  # of the hierarchy that are shown
LINES = 10_000  # primes written at once
WIDTH = 96

Given = tuple[int, int, int, float]
FORM = "expected P,K or P,K,N or P,K,N,LAM, such as 5,3,1,0.343 or 5,3,1,m"


def _arguments(context: Any, parameter: Any, texts: tuple[str, ...]) -> list[Given]:
    """What --theta was given, each time; LAM may be a word, whose first letter has a wavelength."""
    from crystalline.lattice.angular import wavelength

    found = []
    for text in texts:
        parts = text.split(",")
        try:
            if not 2 <= len(parts) <= 4:
                raise ValueError
            p, k, n, lam = [*parts, "0", "0"][:4]
            metres = wavelength(lam) if lam[:1].isalpha() else float(lam)
            found.append((int(p), int(k), int(n), metres))
        except ValueError:
            raise click.BadParameter(f"{text!r}; {FORM}.") from None
    return found


@click.command()
@click.option("--theta", "given", metavar="P,K[,N[,LAM]]", multiple=True, callback=_arguments,
              help="Angle of the K-th prime, P, in dimension N, at wavelength LAM: metres, or a "
                   "letter. May be repeated.")  # fmt: skip
@click.option("--primes", type=(int, int), metavar="LO HI",
              help="Primes from LO to HI, both included, one a line.")  # fmt: skip
@click.option("--group", type=int, help="Only those of this group, 0 to 11: prime mod 12.")
@click.option("--hierarchy", is_flag=True, help="Levels of spheres, and the twelve positions.")
@click.option("--plot", metavar="FILE.png", type=click.Path(),
              help="Draw the spiral of the primes, coloured by groups, as PNG.")  # fmt: skip
@AS_JSON
def lattice(
    given: list[Given], primes: tuple[int, int] | None, group: int | None, hierarchy: bool,
    plot: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Show the mathematics of the lattice: the constants, or what is asked for.

    \b
    crystalline lattice --theta 5,3,1,m --hierarchy
    crystalline lattice --primes 143000 145000 --group 7
    crystalline lattice --plot spiral.png
    """
    if group is not None and primes is None:
        raise click.UsageError("--group chooses among --primes; say both.")
    said: dict[str, Any] = {}
    if given:
        said["theta"] = _angles(given)
    if hierarchy:
        said["hierarchy"] = {"levels": _levels(), "spheres": _spheres()}
    if primes is not None:
        said["primes"] = _primes(*primes, group)
    if plot is not None:
        from crystalline.lattice.picture import draw_spiral

        draw_spiral(plot)
    elif not said:
        said["constants"] = _constants()
    if as_json:
        said |= {} if plot is None else {"plot": plot}
        click.echo(json.dumps(said, default=list))  # an abacus is listed
        return
    for i, (name, what) in enumerate(said.items()):
        if i:
            click.echo()
        SHOW[name](what)
    if plot is not None:
        click.echo(f"drawn: {tame(plot)}", err=True)


def _angles(given: list[Given]) -> list[dict[str, Any]]:
    from crystalline.lattice.angular import angle

    names = ("p", "k", "n", "lam")
    return [dict(zip(names, one, strict=True)) | angle(*one)._asdict() for one in given]


def _primes(lo: int, hi: int, group: int | None) -> dict[str, Any]:
    from crystalline.lattice.abacus import Abacus

    return {"lo": lo, "hi": hi, "group": group, "primes": Abacus(lo, hi, group)}


def _constants() -> dict[str, Any]:
    """All of them, exactly: integers, lists, and text where JSON has no such number."""
    from crystalline.lattice import constants as c

    numbers = (
        "SYMMETRY_GROUPS", "VECTOR_CULMINATION", "EINSTEIN_LAMBDA", "BOUNDARY_LOWER",
        "BOUNDARY_UPPER", "GOLDEN_RATIO", "SOUND_SPEED",
    )  # fmt: skip
    lists = ("DIMENSIONAL_FREQUENCIES", "CYMATIC_FREQUENCIES", "PLIMPTON_322")
    said: dict[str, Any] = {}
    for name in numbers:
        value = getattr(c, name)
        said[name] = {"exact": str(value), "float": c.as_float(value),
                      "fixed_64": c.as_fixed(value, 64)}  # fmt: skip
    said |= {name: getattr(c, name) for name in lists}
    said["boundary_pair_is_twin_prime"] = c.boundary_pair_is_twin_prime()
    said["nearest_twin_primes"] = c.nearest_twin_primes()
    return said


def _levels() -> list[dict[str, Any]]:
    from crystalline.lattice.positions import growth, level_size, level_total

    return [
        {"depth": d, "spheres": level_size(d), "total": level_total(d), "growth": int(growth(d))}
        for d in range(LEVELS)
    ]


def _spheres() -> list[dict[str, Any]]:
    """The twelve on the clock, and in space around the one they touch."""
    from crystalline.lattice.positions import SpherePosition, kissing_arrangement

    places = [SpherePosition(group, depth=1, centre=2, radius=0) for group in range(12)]
    return [
        {"group": place.group, "angle": place.angle, "quadrant": place.quadrant, "centre": centre}
        for place, centre in zip(places, kissing_arrangement().tolist(), strict=True)
    ]


def _show_constants(said: dict[str, Any]) -> None:
    notes = {
        "VECTOR_CULMINATION": _product("VECTOR_CULMINATION"),
        "EINSTEIN_LAMBDA": "3/144000; a name only",
        "BOUNDARY_LOWER": _product("BOUNDARY_LOWER"),
        "BOUNDARY_UPPER": _product("BOUNDARY_UPPER"),
        "SOUND_SPEED": "metres per second",
    }
    rows = [
        (name, value["exact"], f"{value['float']!r}", notes.get(name, ""))
        for name, value in said.items() if isinstance(value, dict)
    ]  # fmt: skip
    click.echo(columns(("name", "exact", "float", ""), rows, {0, 1, 2, 3}))
    lower, upper = said["BOUNDARY_LOWER"]["exact"], said["BOUNDARY_UPPER"]["exact"]
    below, above = said["nearest_twin_primes"]
    are = "are" if said["boundary_pair_is_twin_prime"] else "are no"
    click.echo(f"\n{lower} and {upper} {are} twin primes; the nearest are {below} and {above}")
    for name, unit in LISTS.items():
        values = " ".join(str(value).replace(" ", "") for value in said[name])
        click.echo(f"\n{click.style(name, bold=True)}{unit}\n{textwrap.fill(values, WIDTH)}")


def _product(name: str) -> str:
    """A constant as a product of powers of primes."""
    from crystalline.lattice import constants as c

    factors = c.prime_factors(getattr(c, name))
    powers = [f"{f}^{n}" if (n := factors.count(f)) > 1 else f"{f}" for f in sorted(set(factors))]
    return "prime" if len(factors) == 1 else " * ".join(powers)


def _show_theta(said: list[dict[str, Any]]) -> None:
    head = ("p", "k", "n", "lam", "theta", "turn", "hour", "minute", "group", "boundary")
    rows = [
        (*(str(one[name]) for name in head[:3]), f"{one['lam']:g} m", f"{one['theta']:.9f}",
         f"{one['turn']:.12f}", *(str(one[name]) for name in head[6:9]),
         "near" if one["near_boundary"] else "")
        for one in said
    ]  # fmt: skip
    click.echo(columns(head, rows, {9}))


def _show_hierarchy(said: dict[str, Any]) -> None:
    levels = [[f"{value:,}" for value in one.values()] for one in said["levels"]]
    spheres = [
        [*(str(one[name]) for name in ("group", "angle", "quadrant")),
         *(f"{x:+.4f}" for x in one["centre"])] for one in said["spheres"]
    ]  # fmt: skip
    click.echo(columns(("depth", "spheres", "down to it", "growth"), levels, ()))
    click.echo()
    click.echo(columns(("group", "degrees", "quadrant", "x", "y", "z"), spheres, ()))


def _show_primes(said: dict[str, Any]) -> None:
    """One a line, as they come: there may be more than memory holds."""
    left = iter(said["primes"])
    while some := list(islice(left, LINES)):
        click.echo("\n".join(map(str, some)))


LISTS = {"DIMENSIONAL_FREQUENCIES": "", "CYMATIC_FREQUENCIES": " (Hz)", "PLIMPTON_322": ""}
SHOW: dict[str, Callable[[Any], None]] = {
    "constants": _show_constants, "theta": _show_theta, "hierarchy": _show_hierarchy,
    "primes": _show_primes,
}  # fmt: skip
