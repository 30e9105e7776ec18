"""The lattice: its constants, the angles of primes, the primes themselves, places in space.

``constants`` holds exact numbers; ``angular`` the angle of a prime; ``abacus`` makes primes;
``positions`` says where the 12 spheres stand.  The names are imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalline.lattice.abacus import Abacus
    from crystalline.lattice.angular import (
        Angle,
        angle,
        angles,
        index,
        omega,
        phonetic,
        psi,
        spiral,
        theta,
        turns,
        wavelength,
    )
    from crystalline.lattice.constants import (
        BOUNDARY_LOWER,
        BOUNDARY_UPPER,
        CYMATIC_FREQUENCIES,
        DIMENSIONAL_FREQUENCIES,
        EINSTEIN_LAMBDA,
        GOLDEN_RATIO,
        NEAR_BOUNDARY,
        PLIMPTON_322,
        SOUND_SPEED,
        SYMMETRY_GROUPS,
        VECTOR_CULMINATION,
        as_fixed,
        as_float,
        boundary_pair_is_twin_prime,
        nearest_twin_primes,
        plimpton_triple,
        prime_factors,
    )
    from crystalline.lattice.positions import (
        BOUNDARY_REGION,
        SpherePosition,
        correction,
        growth,
        kissing_arrangement,
        level_size,
        level_total,
    )

__all__ = [
    "BOUNDARY_LOWER", "BOUNDARY_REGION", "BOUNDARY_UPPER", "CYMATIC_FREQUENCIES",
    "DIMENSIONAL_FREQUENCIES", "EINSTEIN_LAMBDA", "GOLDEN_RATIO", "NEAR_BOUNDARY", "PLIMPTON_322",
    "SOUND_SPEED", "SYMMETRY_GROUPS", "VECTOR_CULMINATION", "Abacus", "Angle", "SpherePosition",
    "angle", "angles", "as_fixed", "as_float", "boundary_pair_is_twin_prime", "correction",
    "growth", "index", "kissing_arrangement", "level_size", "level_total", "nearest_twin_primes",
    "omega", "phonetic", "plimpton_triple", "prime_factors", "psi", "spiral", "theta", "turns",
    "wavelength",
]  # fmt: skip

_NAMES = {
    "constants": (
        "BOUNDARY_LOWER", "BOUNDARY_UPPER", "CYMATIC_FREQUENCIES", "DIMENSIONAL_FREQUENCIES",
        "EINSTEIN_LAMBDA", "GOLDEN_RATIO", "NEAR_BOUNDARY", "PLIMPTON_322", "SOUND_SPEED",
        "SYMMETRY_GROUPS", "VECTOR_CULMINATION", "as_fixed", "as_float",
        "boundary_pair_is_twin_prime", "nearest_twin_primes", "plimpton_triple", "prime_factors",
    ),
    "angular": (
        "Angle", "angle", "angles", "index", "omega", "phonetic", "psi", "spiral", "theta", "turns",
        "wavelength",
    ),
    "abacus": (
        "Abacus",
    ),
    "positions": (
        "BOUNDARY_REGION", "SpherePosition", "correction", "growth", "kissing_arrangement",
        "level_size", "level_total",
    ),
}  # fmt: skip
_HOMES = {name: home for home, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported on first use so that importing the package is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'crystalline.lattice' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"crystalline.lattice.{_HOMES[name]}"), name)
