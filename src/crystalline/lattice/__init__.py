"""The lattice: primes in twelve groups."""
