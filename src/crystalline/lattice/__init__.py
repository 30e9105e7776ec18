"""The lattice: its constants, the angles of primes, the primes themselves, places in space."""
