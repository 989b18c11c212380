"""Encoders by themselves: the layout that a stage would hand them."""

from contnet_mm.models.linear import autocast_dtype
from contnet_mm.models.window_attention import choose_way
from contnet_mm.models.window_layout import window_layout


def layout_for(encoders, x, is_compiling=False, is_tracing=False):
    """Return the layout of the windows of a map, [B, C, H, W]."""
    dtype = autocast_dtype(x.device.type) or x.dtype
    kinds = encoders.head_dim, encoders.has_bias, encoders.has_dropout
    way = choose_way(x.device, dtype, *kinds, is_compiling, is_tracing)
    recorded = is_compiling or is_tracing
    return window_layout(
        *x.shape[2:], encoders.window_sizes, way, len(x), x.device, is_traced=recorded
    )


def encode(encoders, x):
    """Run the encoders of a block on a map, [B, C, H, W]."""
    return encoders(x, layout_for(encoders, x))
