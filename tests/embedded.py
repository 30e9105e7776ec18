"""Run by an interpreter that has crystalline and examples/embed_cython: are they right?"""

import nearest
import numpy as np
import unlinked

from crystalline._native import Team, available_isas

rng = np.random.default_rng(5)
queries, keys = (rng.standard_normal((n, 39)).astype(np.float32) for n in (7, 52))
want = queries.astype(float) @ keys.astype(float).T
want /= np.linalg.norm(queries.astype(float), axis=1)[:, None]
want /= np.linalg.norm(keys.astype(float), axis=1)
outs = [np.full((7, 52), np.nan, np.float32) for _ in range(2)]
for out, threads in zip(outs, (1, 3), strict=True):
    nearest.similarities(out, queries, keys, threads=threads)
assert abs(outs[0] - want).max() < 64 * 2.0**-24  # 39 products and a few roundings of the norms
assert outs[0].tobytes() == outs[1].tobytes()
try:
    nearest.similarities(outs[0], queries, keys[:, :5].copy())
except ValueError as error:
    assert "keys are (52, 5), but must be (52, 39)" in str(error), error
else:
    raise AssertionError("keys of another width were taken")

x = rng.uniform(-80, 80, 1003).astype(np.float32)
y, same = np.full_like(x, np.nan), np.full_like(x, np.nan)
unlinked.exp(y, x)
Team(1).exp(same, x)
assert y.tobytes() == same.tobytes()
assert abs(y / np.exp(x.astype(float)) - 1).max() < 4 * 2.0**-24
assert unlinked.isa() == available_isas()[-1]
print("right on", unlinked.isa())
