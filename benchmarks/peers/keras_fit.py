"""Keras: a Sequential model and fit on arrays; KERAS_BACKEND chooses what computes."""

import time
from typing import Any

import keras
from common import Report, mnist, options


class Watch(keras.callbacks.Callback):
    def __init__(self, x: Any, y: Any) -> None:
        super().__init__()
        self.x, self.y, self.report = x, y, Report()
        self.times: list[float] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.report.start()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if len(self.times) < 10:
            self.times.append(time.perf_counter())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        compile_s = self.times[1] - self.times[0] if len(self.times) > 1 else 0.0
        if self.report.epoch_ends(self.accuracy, compile_s=compile_s):
            self.model.stop_training = True

    def accuracy(self) -> float:
        return float((self.model.predict(self.x, 1000, verbose=0).argmax(1) == self.y).mean())


def main() -> None:
    known = options(style=False)
    keras.utils.set_random_seed(known.seed)
    (x, y), (test_x, test_y) = mnist(known.data_root)
    x, test_x = x.astype("float32") / 255, test_x.astype("float32") / 255
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.LSTM(64), keras.layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.Adam(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    watch = Watch(test_x, test_y)
    model.fit(x, y, batch_size=64, epochs=known.epochs, verbose=0, callbacks=[watch])


if __name__ == "__main__":
    main()
