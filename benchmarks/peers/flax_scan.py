"""Flax with optax, a whole epoch as one compiled scan over batches: JAX at its best."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import Report, mnist, options
from flax import linen as nn

BATCH = 64


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        return nn.Dense(10)(nn.RNN(nn.OptimizedLSTMCell(64))(x)[:, -1])


def main() -> None:
    known = options(style=False)
    (x, y), (test_x, test_y) = (
        (jnp.asarray(images, jnp.float32) / 255, jnp.asarray(labels))
        for images, labels in mnist(known.data_root)
    )
    model = Classifier()
    weights = model.init(jax.random.key(known.seed), x[:1])
    optimizer = optax.adam(0.01)
    state = optimizer.init(weights)

    def loss_of(weights: Any, ids: jax.Array) -> jax.Array:
        logits = model.apply(weights, x[ids])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[ids]).mean()

    def step(carry: Any, ids: jax.Array) -> Any:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss_of)(weights, ids), state)
        return (optax.apply_updates(weights, updates), state), None

    def epoch(weights: Any, state: Any, order: jax.Array) -> Any:
        return jax.lax.scan(step, (weights, state), order)[0]

    def hits(weights: Any) -> jax.Array:
        return (model.apply(weights, test_x).argmax(1) == test_y).sum()

    rng, num_batches = np.random.default_rng(known.seed), len(y) // BATCH  # a scan drops the rest

    def order() -> jax.Array:
        return jnp.asarray(rng.permutation(len(y))[: num_batches * BATCH].reshape(-1, BATCH))

    started = time.perf_counter()
    compiled = jax.jit(epoch).lower(weights, state, order()).compile()
    evaluate = jax.jit(hits).lower(weights).compile()
    compile_s = time.perf_counter() - started
    report = Report()
    for _ in range(known.epochs):
        weights, state = jax.block_until_ready(compiled(weights, state, order()))
        if report.epoch_ends(lambda: int(evaluate(weights)) / len(test_y), compile_s=compile_s):  # noqa: B023
            break


if __name__ == "__main__":
    main()
