"""Compiles every kernel for an H100, without one, and tells what each takes of it.

Run by itself: `python tests/models/compile_kernels.py`. Fails where a kernel does not compile or
takes more shared memory than a block may have.
"""

import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from triton import compile, knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from contnet_mm.models.kernels import attention, mlp, norm  # noqa: E402

H100 = GPUTarget('cuda', 90, 32)
SHARED_MEMORY = 232448  # bytes that a block may have at most
TYPES = {torch.float32: '*fp32', torch.bfloat16: '*bf16', torch.float16: '*fp16'}
STAGES = ((64, 1, 256), (128, 2, 512), (48, 1, 196), (96, 2, 392))  # channels, heads, hidden


class Recorder:
    """Takes the place of a kernel and notes what it is called with."""

    calls: list = []

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.calls.append((self.kernel, args, kwargs))


def record(channels, heads, hidden, dtype, pre_norm, position):
    """Call all kernels of an encoder once."""
    tokens, size = 400, 20
    x = torch.empty(tokens, channels, dtype=dtype)
    w1, w2 = torch.empty(hidden, channels, dtype=dtype), torch.empty(channels, hidden, dtype=dtype)
    b1, vector = torch.empty(hidden, dtype=dtype), torch.empty(channels)
    shift = vector.to(dtype)
    for save in (False, True):
        _, *saved = mlp.fused_mlp(x, w1, b1, w2, shift, vector, vector, 1e-5, pre_norm, save)
    mlp.fused_mlp_backward(x, x, w1, b1, w2, vector, vector, *saved, pre_norm)
    for window_size in (7, 14):
        area = window_size**2
        absolute = position == 'absolute'
        table = torch.empty(area, channels, dtype=dtype) if absolute else None
        bias = None if absolute else torch.empty(heads, area, area, dtype=dtype)
        qkv_weight, weight = (torch.empty(n * channels, channels, dtype=dtype) for n in (3, 1))
        qkv_bias = torch.empty(3 * channels, dtype=dtype)
        images = x.view(1, size, size, channels)
        inputs = (images, table, bias, qkv_weight, qkv_bias, weight)
        options = (window_size, heads, pre_norm)
        for save in (False, True):
            _, *saved = attention.fused_attention(
                *inputs, shift, vector, vector, 1e-5, *options, save
            )
        attention.fused_attention_backward(images, *inputs, vector, vector, *saved, *options)


def build(kernel, args, options):
    """Compile a kernel as a call with these arguments would, and return what it takes."""
    names, values = kernel.arg_names, {}
    launch = {key: options[key] for key in options if key.startswith('num_')}
    values.update(zip(names, args, strict=False))
    values.update({key: options[key] for key in options if key not in launch})
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name], attributes[(i,)] = TYPES[value.dtype], [['tt.divisibility', 16]]
        elif value is None or name.isupper():
            signature[name], constants[name] = 'constexpr', value
        else:
            signature[name] = 'i32' if isinstance(value, int) else 'fp32'
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = compile(source, target=H100, options=launch)
    with tempfile.NamedTemporaryFile('w', suffix='.ptx') as file:
        file.write(compiled.asm['ptx'])
        file.flush()
        command = [knobs.nvidia.ptxas.path, '-v', '-arch=sm_90a', file.name, '-o', '/dev/null']
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r'Used (\d+) registers', said)[1]
    spilled = re.search(r'(\d+) bytes spill stores', said)[1]
    return compiled.metadata.shared, int(registers), int(spilled), launch.get('num_warps')


def main():
    """Compile all, and fail at the end if one takes too much."""
    for module in (mlp, attention, norm):
        for name in [n for n in vars(module) if re.fullmatch('_(forward|backward)(_[a-z]+)?', n)]:
            kernel = Recorder(getattr(module, name))
            kernel.title = f'{module.__name__.split(".")[-1]}{name}'
            setattr(module, name, kernel)
            kernel.kernel.title = kernel.title
    # All widths in bfloat16 as the archs come; the other dtypes and variants at those of ConT-M.
    variants = [*product((False, True), ('absolute', 'relative'))]
    cases = [(stage, torch.bfloat16, False, 'absolute') for stage in STAGES]
    cases += [
        (stage, dtype, *variant) for stage in STAGES[:2] for dtype in TYPES for variant in variants
    ]
    seen, too_large = set(), []
    for (channels, heads, hidden), dtype, pre_norm, position in cases:
        Recorder.calls.clear()
        record(channels, heads, hidden, dtype, pre_norm, position)
        for kernel, args, options in Recorder.calls:
            flags = ' '.join(f'{k}={v}' for k, v in options.items())
            biased = ' relative' if position == 'relative' else ''
            title = f'{kernel.title} {channels} {str(dtype)[6:]}{biased} {flags}'
            if title in seen:
                continue
            seen.add(title)
            shared, registers, spilled, warps = build(kernel, args, options)
            print(
                f'{title}: {shared} bytes of shared memory, {registers} registers in {warps} '
                f'warps, {spilled} bytes spilled',
                flush=True,
            )
            if shared > SHARED_MEMORY:
                too_large.append(title)
    if too_large:
        sys.exit('more shared memory than there is: ' + '; '.join(too_large))


if __name__ == '__main__':
    main()
