"""A CUDA device without a GPU: tensors on it have shapes, and no values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)


class _FakeCuda(TorchDispatchMode):
    """Compute shapes where a tensor is on CUDA, and values on the CPU.

    An operation on tensors of both devices raises, as on a GPU. A copy to the CPU is all zeros.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shapes = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        options = dict(kwargs or {})
        leaves = tree_leaves((args, options))
        devices = {leaf.type for leaf in leaves if isinstance(leaf, torch.device)}
        is_fake = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        if not is_fake and "cuda" not in devices:
            return func(*args, **options)
        if func.namespace == "aten":
            with self:  # under inference_mode an operation comes here whole, such as Tensor.to
                parts = func.decompose(*args, **options)
            if parts is not NotImplemented:
                return parts
        if func is torch.ops.aten._to_copy.default and "cpu" in devices:
            return torch.zeros(args[0].shape, dtype=options.get("dtype") or args[0].dtype)
        with self._shapes:
            return func(*args, **options)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Have tensors on CUDA, where the body can do all but run backward."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda._lazy_init", lambda: None)  # torch asks for a driver otherwise
        with torch.backends.cudnn.flags(enabled=False), _FakeCuda():
            yield
