"""A training loop of one's own, in NumPy with crystalline's kernels: which of four letters follows?

python examples/kernels_from_numpy.py
"""

import numpy as np

import crystalline.kernels as ck

V, D, F, STEPS = 4, 16, 32, 60
rng = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return (0.3 * rng.standard_normal(shape)).astype(np.float32)


names = ["embedding", "norm", "gate_up", "down", "head"]
p = [weight(V, D), np.ones(D, np.float32), weight(2 * F, D), weight(D, F), weight(V, D)]
m, v = [np.zeros_like(a) for a in p], [np.zeros_like(a) for a in p]

ids = np.arange(97) % V  # a b c d a b c ...
tokens, targets = ids[:-1], ids[1:]
rrms, losses = np.empty(96, np.float32), np.empty(96, np.float32)

for step in range(1, STEPS + 1):
    embedding, norm, gate_up, down, head = p
    # Forward: x + down(swiglu(gate_up(rmsnorm(x)))).
    x = ck.embedding(embedding, tokens)
    h = ck.rmsnorm(x, norm, rrms=rrms)
    gu = ck.linear(h, gate_up)
    act = ck.swiglu(gu)
    y = ck.linear(act, down, x)
    # Backward, from the loss to the embedding.
    dy, dhead = ck.linear_cross_entropy_backward(y, head, targets, 1 / 96, losses=losses)
    dact, ddown = ck.linear_backward(dy, act, down)
    dgu = ck.swiglu_backward(dact, gu, out=gu)
    dh, dgate_up = ck.linear_backward(dgu, h, gate_up)
    dx, dnorm = ck.rmsnorm_backward(dh, x, norm, rrms)
    dembedding = ck.embedding_backward(dx + dy, tokens, V)
    # Update, the gradient's norm held to 1.
    grads = [dembedding, dnorm, dgate_up, ddown, dhead]
    size = sum(ck.squared_norm(g) for g in grads) ** 0.5
    for a, b, c, g in zip(p, m, v, grads, strict=True):
        ck.adamw(a, b, c, g, lr=0.05, step=step, grad_scale=min(1.0, 1.0 / size))
    if step in (1, STEPS):
        print(f"step {step}: loss {losses.mean():.4f}")

print("probabilities after a:", np.round(ck.softmax(ck.linear(y, head))[0], 3).tolist())
