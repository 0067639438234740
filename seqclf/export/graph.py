"""An ONNX graph while it grows, operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

OPSET = 18
IR_VERSION = 8  # the format of files with OPSET; onnxruntime 1.14 and later read both


class Graph:
    """Operators and constants. Each output has a name of its own, such as `Mul_12`."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def op(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add an operator; return the name of its output. An array is a constant."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(
        self, kind: str, num_outputs: int, *inputs: str | np.ndarray, **attributes: Any
    ) -> list[str]:
        """Add an operator; return the names of its outputs. An empty input is left out."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        prefix = f"{kind}_{len(self._nodes)}"
        outputs = [prefix + f"_{number}" * (number > 0) for number in range(num_outputs)]
        self._nodes.append(helper.make_node(kind, names, outputs, prefix, **attributes))
        return outputs

    def name(self, value: str, name: str) -> str:
        """Give a value the name of an output of the whole graph."""
        self._nodes.append(helper.make_node("Identity", [value], [name], f"output_{name}"))
        return name

    def constant(self, array: np.ndarray) -> str:
        """Add a constant; return its name."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        version: str,
    ) -> onnx.ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(self._nodes, "seqclf", inputs, outputs, self._constants)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="seqclf",
            producer_version=version,
        )


def ints(*numbers: int) -> np.ndarray:
    """Return a constant of whole numbers, int64 [N]."""
    return np.array(numbers, dtype=np.int64)


def number(value: float, like: type[np.generic] = np.float32) -> np.ndarray:
    """Return a constant that is one number."""
    return np.array(value, dtype=like)


def weights(tensor: Tensor) -> np.ndarray:
    """Return a model's numbers as a constant, float32."""
    array: np.ndarray = tensor.detach().cpu().float().numpy()
    return array
