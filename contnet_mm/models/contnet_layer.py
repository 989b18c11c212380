"""The last stage of ConTNet as a head that all RoIs of a C4 detector share."""

from __future__ import annotations

from torch import Tensor, nn

from contnet_mm.models.blocks import channels_last
from contnet_mm.models.contnet import ConTNet
from contnet_mm.models.pretrained import PretrainedModule
from contnet_mm.registry import MODELS
from contnet_mm.utils.checks import check_integer


@MODELS.register_module()
class ConTLayer(PretrainedModule):
    """The last stage of a ConTNet, applied to crops of its third map, like mmdet's ``ResLayer``.

    C4 detectors stop the backbone at stride 16 (``ConTNet(out_indices=(2,))``), crop regions of
    14 x 14 from that map and run the rest of the network on each of them: stage 4, on every second
    row and column. A region of 14 x 14 becomes 7 x 7, exactly one window of stage 4. Backbone and
    head together are the whole network, but with ``avg_down``, whose pooling is left out.

    Args:
        arch: As in the backbone, like all arguments that are not listed here.
        stride: Stride of the head.
        init_cfg: As in MMEngine. ``dict(type='Pretrained', checkpoint=...)`` takes this stage from
            every file that the whole :class:`~contnet_mm.models.contnet.ConTNet` takes, and raises
            unless each tensor is found. A detector's own shared head needs
            ``prefix='roi_head.shared_head.'``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a value that cannot be.

    Examples:
        >>> import torch
        >>> head = ConTLayer('tiny').eval()
        >>> head.in_channels, head.out_channels
        (384, 768)
        >>> head(torch.zeros(5, 384, 14, 14)).shape
        torch.Size([5, 768, 7, 7])
    """

    def __init__(
        self,
        arch: str | dict = 'medium',
        stride: int = 2,
        position: str = 'absolute',
        pre_norm: bool = False,
        qkv_bias: bool = True,
        norm_cfg: dict = dict(type='BN'),  # noqa: B006 (copied, never written to)
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(norm_cfg, norm_eval, init_cfg)
        self.stride = check_integer('stride', stride, low=1)
        # Taken out of a whole network, so that one place builds, initialises and checks.
        whole = ConTNet(
            arch,
            out_indices=(2, 3),
            position=position,
            pre_norm=pre_norm,
            qkv_bias=qkv_bias,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
        )
        self._options = {k: whole._options[k] for k in ('position', 'pre_norm', 'qkv_bias')}
        self._geometry = dict(stride=stride, window_sizes=whole._geometry['window_sizes'])
        self.in_channels, self.out_channels = whole.out_channels
        # A dict instead of a list keeps the names of the whole network.
        self.stages = nn.ModuleDict({'3': whole.stages[3]})
        self._freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the head of each crop.

        Args:
            x: Crops of the third map, [N, in_channels, h, w], of any size; N may be 0.

        Returns:
            [N, out_channels, ceil(h / stride), ceil(w / stride)], contiguous in memory as a
            ResNet's.

        Raises:
            ValueError: If the shape is not as above.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'crops must be [N, {self.in_channels}, h, w], of the third map with '
                f"feature_location='block', got {[*x.shape]}"
            )
        x = channels_last(x[:, :, :: self.stride, :: self.stride])
        blocks = self.stages['3']
        masks = blocks[0].padding_masks(x)
        for block in blocks:
            x, _ = block(x, masks)
        return x.contiguous()  # see ConTNet.forward

    def owns_key(self, key: str) -> bool:
        """Return whether a key of the whole network belongs to a part that is built here."""
        return key.startswith('stages.3.')
