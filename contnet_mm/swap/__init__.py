"""Puts ConTNet into a config that was written for another backbone."""

from contnet_mm.swap.edit import Swap, SwapError
from contnet_mm.swap.plan import plan_swap, swap_backbone

__all__ = ['Swap', 'SwapError', 'plan_swap', 'swap_backbone']
