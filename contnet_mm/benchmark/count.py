"""Count what a training step asks of a GPU, without having one.

Networks run on torch's meta device, whose tensors have shapes and dtypes but no values. Code with
a special case for the CPU takes the same path there as on a GPU. One known difference: assigning a
number to a slice is two operations on meta and one on a GPU. Counts depend on the code and on the
version of torch only, not on the machine. They do not tell how long an operation takes.

What counts:

- An operation is a call of torch's dispatcher that computes or copies; views and allocations do
  not count. Its bytes are those of all tensors among its arguments and results.
- ``torch.nn.functional.scaled_dot_product_attention`` is one operation in each pass.
- Memory that the forward pass allocates is kept if the backward pass needs it: it stays in use
  after the maps are deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from contnet_mm.benchmark.networks import build_network, list_settings
from contnet_mm.benchmark.plan import BFLOAT16, FLOAT32, PURE_BFLOAT16, Size
from contnet_mm.utils.markdown import make_row, make_table

META, CUDA = 'meta', 'cuda'
# Their schemas do not show that they only allocate or view.
WITHOUT_WORK = ('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided')
WITHOUT_WORK += ('_unsafe_view',)
COUNTED_DTYPES = (FLOAT32, BFLOAT16, PURE_BFLOAT16)
COLUMNS = ('size', 'dtype', 'network', 'operations forward', 'backward', 'total')
COLUMNS += ('GB', 'kept (GB)')


@dataclass(frozen=True)
class WorkCount:
    """What one step asks of a device.

    Args:
        forward: Operations of the forward pass.
        backward: Operations of the backward pass; None where there was none.
        bytes: Bytes that all of these read and write.
        kept: Bytes of activations that the forward pass keeps for the backward pass.
    """

    forward: int
    backward: int | None
    bytes: int
    kept: int

    @property
    def operations(self) -> int:
        """Operations of both passes."""
        return self.forward + (self.backward or 0)


class Counter(TorchDispatchMode):
    """Count operations and their bytes on a type of device, such as ``'meta'``, while active."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.operations = self.bytes = 0
        self._allocated: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operator and count it."""
        out = function(*args, **(kwargs or {}))
        if _has_work(function):
            self.add(args, kwargs, out)
        given, found = self._storages(args, kwargs), self._storages(out)
        self._allocated |= {s: size for s, size in found.items() if s not in given}
        return out

    @property
    def bytes_in_use(self) -> int:
        """Bytes on the device that were allocated while active and are still referenced."""
        return sum(size for storage, size in self._allocated.items() if not storage.expired())

    def add(self, *values) -> None:
        """Count one operation if any tensor among its arguments and results is on the device."""
        tensors = _tensors(values)
        if any(x.device.type == self.device for x in tensors):
            self.operations += 1
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)

    def _storages(self, *values) -> dict[StorageWeakRef, int]:
        """Return the bytes of each storage behind the tensors that are on the device."""
        tensors = (x for x in _tensors(values) if x.device.type == self.device)
        storages = (x.untyped_storage() for x in tensors)
        return {StorageWeakRef(storage): storage.nbytes() for storage in storages}


def _tensors(values: object) -> list[Tensor]:
    return [x for x in tree_flatten(values)[0] if isinstance(x, Tensor)]


def _has_work(function: torch._ops.OpOverload) -> bool:
    """Return whether an operator computes or copies, judging by its schema."""
    schema = function._schema
    if schema.name.split('::')[1] in WITHOUT_WORK or torch.Tag.inplace_view in function.tags:
        return False
    if schema.is_mutable:
        return True
    aliases = [value.alias_info for value in schema.returns]
    is_view = any(alias is not None for alias in aliases)
    return not is_view and any('Tensor' in str(value.type) for value in schema.returns)


class _FusedAttention(torch.autograd.Function):
    """Stand-in for a fused attention kernel: one operation in each pass.

    Shapes: queries [..., N, D], keys [..., M, D], values [..., M, E], mask broadcast to
    [..., N, M] or None, result [..., N, E]. As with the kernels, the result has the memory layout
    of the queries, so that heads split from [..., N, heads * D] are merged without a copy.
    """

    @staticmethod
    def forward(ctx, counter, query, key, value, mask):
        ctx.counter = counter
        ctx.save_for_backward(query, key, value, mask)
        if value.shape[-1] == query.shape[-1]:
            out = torch.empty_like(query)
        else:
            out = query.new_empty(*query.shape[:-1], value.shape[-1])
        counter.add(query, key, value, mask, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        inputs = ctx.saved_tensors
        with_mask = ctx.needs_input_grad[-1]
        grads = [torch.empty_like(x) for x in inputs[: 4 if with_mask else 3]]
        ctx.counter.add(grad, *inputs, *grads)
        return None, *grads, *([] if with_mask else [None])


@contextmanager
def counting(device: str) -> Iterator[Counter]:
    """Count what runs inside on a type of device, with fused attention as one operation.

    For meta and fake tensors, torch decomposes ``scaled_dot_product_attention`` into products and
    a softmax. It is replaced in ``torch.nn.functional``, where networks look it up.
    """
    counter = Counter(device)

    def attention(query, key, value, attn_mask=None, *_, **__):
        return _FusedAttention.apply(counter, *_autocast(query, key, value, attn_mask))

    with patch.object(F, 'scaled_dot_product_attention', attention), counter:
        yield counter


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast floating-point tensors as autocast for CUDA does for attention, where it is on."""
    if not torch.is_autocast_enabled():  # asks for CUDA; older torch takes no name
        return [*tensors]
    dtype = torch.get_autocast_dtype(CUDA)
    casts = [x is not None and x.is_cuda and x.is_floating_point() for x in tensors]
    return [x.to(dtype) if cast else x for x, cast in zip(tensors, casts, strict=True)]


@contextmanager
def cuda_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Turn autocast on as on a GPU, or off for None; ``torch.autocast`` needs a GPU for it."""
    was_enabled, old_dtype = torch.is_autocast_enabled(CUDA), torch.get_autocast_dtype(CUDA)
    try:
        torch.set_autocast_enabled(CUDA, dtype is not None)
        torch.set_autocast_dtype(CUDA, dtype or old_dtype)
        yield
    finally:
        torch.clear_autocast_cache()  # weights cast for one pass are cast again for the next
        torch.set_autocast_enabled(CUDA, was_enabled)
        torch.set_autocast_dtype(CUDA, old_dtype)


def count_step(net: nn.Module, images: Tensor) -> WorkCount:
    """Count the operations of a training step, without loss and optimizer.

    Args:
        net: On the meta device, in training mode; gives a tensor or several.
        images: Its input, on the meta device, [B, 3, H, W].

    Returns:
        The counts of both passes. No gradients are left in the network.
    """
    kept = _count_forward(META, net, images).kept
    with counting(META) as counter:
        maps = _tensors(net(images))
        forward = counter.operations
        torch.autograd.backward(maps, [torch.empty_like(x) for x in maps])
    net.zero_grad(set_to_none=True)
    return WorkCount(forward, counter.operations - forward, counter.bytes, kept)


def count_cuda_forward(
    net: nn.Module, images: Tensor, autocast: torch.dtype | None = None
) -> WorkCount:
    """Count the operations of a forward pass in training, on tensors that claim to be on a GPU.

    Autocast ignores tensors on meta, but treats fake tensors as if they were on a GPU. Their
    backward pass needs a driver and is not counted. Needs torch 2.4.

    Args:
        net: On the meta device, in training mode.
        images: Its input, on the meta device, [B, 3, H, W].
        autocast: Dtype of products and convolutions; None to leave autocast off.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):

        def fake(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device=CUDA, requires_grad=tensor.requires_grad)

        # Module.to cannot replace the parameters: modules refuse to swap fake tensors.
        state = {name: fake(x) for name, x in (*net.named_parameters(), *net.named_buffers())}
        inputs = fake(images)
        with cuda_autocast(autocast):
            return _count_forward(CUDA, torch.func.functional_call, net, state, inputs)


def _count_forward(device: str, function: Callable, *args) -> WorkCount:
    with counting(device) as counter:
        graph = [x.grad_fn for x in _tensors(function(*args))]  # of the maps, which are deleted
        kept = counter.bytes_in_use
        del graph
    return WorkCount(counter.operations, None, counter.bytes, kept)


def count_network(network: str, size: Size, dtype: str = FLOAT32) -> WorkCount:
    """Count the operations of a network of the benchmark, built in the first of its settings.

    Args:
        network: One of ``NETWORKS``.
        size: Of the images.
        dtype: ``'float32'``, ``'bfloat16-pure'`` (weights and images are cast), or ``'bfloat16'``
            (autocast; only the forward pass is counted).

    Raises:
        ValueError: If the network is unknown or the dtype cannot be counted.
    """
    if dtype not in COUNTED_DTYPES:
        raise ValueError(f'dtype {dtype!r} cannot be counted; choose among {[*COUNTED_DTYPES]}')
    weights = torch.bfloat16 if dtype == PURE_BFLOAT16 else torch.float32
    with torch.device(META):
        net = build_network(network, list_settings(network, timm=False)[0], size)
        images = torch.empty(size.batch, 3, size.height, size.width, dtype=weights)
    net.to(weights).train()
    if dtype == BFLOAT16:
        return count_cuda_forward(net, images, torch.bfloat16)
    return count_step(net, images)


def render_head() -> str:
    """Write the first two lines of the Markdown table."""
    return make_table(COLUMNS, (), numbers=5)


def render_row(network: str, size: Size, dtype: str, count: WorkCount) -> str:
    """Write the line of the Markdown table that shows a count."""
    backward = '-' if count.backward is None else count.backward
    gigabytes = f'{count.bytes / 1e9:.1f}', f'{count.kept / 1e9:.2f}'
    cells = size, dtype, network, count.forward, backward, count.operations, *gigabytes
    return make_row(cells)
