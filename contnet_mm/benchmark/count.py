"""Count what a training step asks of a GPU, without having one.

Networks run on torch's meta device, whose tensors have shapes and dtypes but no values. Code with
a special case for the CPU takes the same path there as on a GPU. One known difference: assigning a
number to a slice is two operations on meta and one on a GPU. Counts depend on the code and on the
version of torch only, not on the machine. They do not tell how long an operation takes.

What counts:

- An operation is a call of torch's dispatcher that computes or copies; views and allocations do
  not count. Its bytes are those of all tensors among its arguments and results.
- torch's own attention kernels count as one operation in each pass:
  ``scaled_dot_product_attention``, the operators of ``torch.nn.attention.varlen`` and
  ``aten::_efficient_attention_*``.
- An operator of this package (namespace ``contnet_mm``) counts as all that its implementation for
  CUDA calls, which therefore must not read values of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from sys import modules
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from contnet_mm.benchmark.measure import call_in_new_process
from contnet_mm.benchmark.networks import build_network, list_settings
from contnet_mm.benchmark.plan import BFLOAT16, FLOAT32, NETWORKS, PURE_BFLOAT16, Size
from contnet_mm.utils.markdown import make_row, make_table

NAMESPACE = 'contnet_mm'
META, CUDA = 'meta', 'cuda'
CUDA_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
# Their schemas do not show that they only allocate or view.
WITHOUT_WORK = ('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided')
WITHOUT_WORK += ('_unsafe_view',)
# Tensors on meta take the portable path even with fused=True, so the kernels cannot be counted.
COUNTED_NETWORKS = tuple(name for name in NETWORKS if not name.endswith('-fused'))
COUNTED_DTYPES = (FLOAT32, BFLOAT16, PURE_BFLOAT16)
COLUMNS = ('size', 'dtype', 'network', 'operations forward', 'backward', 'total')
COLUMNS += ('more at a new size', 'GB')


@dataclass(frozen=True)
class WorkCount:
    """What one step asks of a device.

    Args:
        forward: Operations of the forward pass.
        backward: Operations of the backward pass; None where there was none.
        bytes: Bytes that all of these read and write.
        more_at_new_size: Additional operations of the first step at an image size; None if
            unknown, in which case the others include them.
    """

    forward: int
    backward: int | None
    bytes: int
    more_at_new_size: int | None = None

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

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operator and count it."""
        kwargs = kwargs or {}
        if function.namespace == NAMESPACE:
            with self:
                return function.redispatch(CUDA_KEYS, *args, **kwargs)
        if function.namespace == 'aten':
            with self:  # composites such as contiguous reach a mode undecomposed inside operators
                out = function.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = function(*args, **kwargs)
        if _has_work(function):
            self.add(args, kwargs, out)
        return out

    def add(self, *values) -> None:
        """Count one operation if any tensor among its arguments and results is on the device."""
        tensors = [x for x in tree_flatten(values)[0] if isinstance(x, Tensor)]
        if any(x.device.type == self.device for x in tensors):
            self.operations += 1
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)


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
    a softmax. It is replaced in all loaded modules that hold it as a global name, and restored
    afterwards. Other references, such as an attribute of a network, are not replaced.
    """
    counter, original = Counter(device), F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, *_, **__):
        return _FusedAttention.apply(counter, *_autocast(query, key, value, attn_mask))

    loaded = [vars(module) for module in [*modules.values()] if isinstance(module, ModuleType)]
    uses = [
        (names, name) for names in loaded for name, value in [*names.items()] if value is original
    ]
    try:
        for names, name in uses:
            names[name] = attention
        with counter:
            yield counter
    finally:
        for names, name in uses:
            names[name] = original


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
    with counting(META) as counter:
        maps = net(images)
        maps = [maps] if isinstance(maps, Tensor) else [*maps]
        forward = counter.operations
        torch.autograd.backward(maps, [torch.empty_like(x) for x in maps])
    net.zero_grad(set_to_none=True)
    return WorkCount(forward, counter.operations - forward, counter.bytes)


def count_cuda_forward(
    net: nn.Module, images: Tensor, autocast: torch.dtype | None = None
) -> WorkCount:
    """Count the operations of a forward pass in training, on tensors that claim to be on a GPU.

    Autocast ignores tensors on meta, but treats fake tensors as if they were on a GPU. Their
    backward pass needs a driver and is not counted. A network that does not cache fake tensors
    recomputes in each pass what it caches per size otherwise. Needs torch 2.4.

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
        with cuda_autocast(autocast), counting(CUDA) as counter:
            torch.func.functional_call(net, state, inputs)
    return WorkCount(counter.operations, None, counter.bytes)


def count_network(network: str, size: Size, dtype: str = FLOAT32) -> WorkCount:
    """Count the operations of a network of the benchmark, built in the first of its settings.

    Whether the size is a new one depends on what this process counted before;
    :func:`count_in_new_process` counts the same every time.

    Args:
        network: One of ``COUNTED_NETWORKS``.
        size: Of the images.
        dtype: ``'float32'``, ``'bfloat16-pure'`` (weights and images are cast), or ``'bfloat16'``
            (autocast; only the forward pass is counted).

    Raises:
        ValueError: If the network or the dtype cannot be counted.
    """
    checks = (('network', network, COUNTED_NETWORKS), ('dtype', dtype, COUNTED_DTYPES))
    for kind, name, allowed in checks:
        if name not in allowed:
            raise ValueError(f'{kind} {name!r} cannot be counted; choose among {[*allowed]}')

    weights = torch.bfloat16 if dtype == PURE_BFLOAT16 else torch.float32
    with torch.device(META):
        net = build_network(network, list_settings(network, timm=False)[0], size)
        images = torch.empty(size.batch, 3, size.height, size.width, dtype=weights)
    net.to(weights).train()
    if dtype == BFLOAT16:
        return count_cuda_forward(net, images, torch.bfloat16)
    first, step = count_step(net, images), count_step(net, images)
    return replace(step, more_at_new_size=first.operations - step.operations)


def count_in_new_process(network: str, size: Size, dtype: str = FLOAT32) -> WorkCount:
    """Count as :func:`count_network` does, in a process that has seen no size yet."""
    return call_in_new_process(count_network, network, size, dtype)


def render_head() -> str:
    """Write the first two lines of the Markdown table."""
    return make_table(COLUMNS, (), numbers=5)


def render_row(network: str, size: Size, dtype: str, count: WorkCount) -> str:
    """Write the line of the Markdown table that shows a count."""
    cells = [size, dtype, network, count.forward, count.backward, count.operations]
    cells += [count.more_at_new_size, f'{count.bytes / 1e9:.1f}']
    return make_row('-' if cell is None else cell for cell in cells)
