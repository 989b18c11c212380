"""ConTNet for torch.hub: ``torch.hub.load('<this folder>', 'contnet_m', source='local')``."""

from contnet_mm import ConTNet

dependencies = ['torch', 'mmengine']


def _build(arch: str, checkpoint: str | None, **kwargs) -> ConTNet:
    if checkpoint is None:
        return ConTNet(arch, **kwargs).eval()
    net = ConTNet(arch, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)), **kwargs)
    net.init_weights()
    return net.eval()


def contnet_ti(checkpoint: str | None = None, **kwargs) -> ConTNet:
    """Build ConT-Ti: images [B, 3, H, W] to four maps at strides 4 to 32.

    ``checkpoint`` is a file with its weights, official or ours, and must cover it; without one they
    are random. Further arguments are those of :class:`contnet_mm.ConTNet`.
    """
    return _build('tiny', checkpoint, **kwargs)


def contnet_s(checkpoint: str | None = None, **kwargs) -> ConTNet:
    """Build ConT-S, likewise."""
    return _build('small', checkpoint, **kwargs)


def contnet_m(checkpoint: str | None = None, **kwargs) -> ConTNet:
    """Build ConT-M, likewise."""
    return _build('medium', checkpoint, **kwargs)


def contnet_b(checkpoint: str | None = None, **kwargs) -> ConTNet:
    """Build ConT-B, likewise."""
    return _build('base', checkpoint, **kwargs)
