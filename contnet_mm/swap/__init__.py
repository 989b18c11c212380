"""Puts ConTNet into a config that was written for another backbone."""

from contnet_mm.swap.changes import Change, Swap, SwapError
from contnet_mm.swap.plan import plan_swap, swap_backbone

__all__ = ['Change', 'Swap', 'SwapError', 'plan_swap', 'swap_backbone']
