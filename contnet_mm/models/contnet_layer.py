"""The last stage of ConTNet as a head that all RoIs of a C4 detector share."""

from __future__ import annotations

from torch import Tensor, nn

from contnet_mm.models.blocks import channels_last, stage_layout
from contnet_mm.models.contnet import ConTNet
from contnet_mm.models.pretrained import PretrainedModule
from contnet_mm.registry import MODELS
from contnet_mm.utils.checks import check_integer


@MODELS.register_module()
class ConTLayer(PretrainedModule):
    """The end of a ConTNet, applied to crops of its third map, like MMDetection's ``ResLayer``.

    C4 detectors stop the backbone at stride 16 (``ConTNet(out_indices=(2,))``), cut regions of
    14 x 14 from that map and run the rest of the network on each of them: here the 3x3 convolution
    of the last block of stage 3, and stage 4 whole. A region of 14 x 14 becomes 7 x 7, exactly one
    window of stage 4.

    NOTE: Inside ConTNet the shortcut of that last block is added to the convolution. It starts from
    the input of the block's encoders, which the third map no longer holds, so it is left out here,
    whatever is loaded. The first norm therefore sees other values than the loaded statistics come
    from: let its weight and bias learn (no ``requires_grad=False`` in ``norm_cfg``).

    Args:
        arch: As in the backbone, like all arguments that are not listed here.
        stride: Stride of the convolution.
        init_cfg: As in MMEngine. ``dict(type='Pretrained', checkpoint=...)`` takes these parts from
            every file that the whole :class:`~contnet_mm.models.contnet.ConTNet` takes, and raises
            unless each tensor is found. Those of a detector's own shared head need
            ``prefix='roi_head.shared_head.'``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a value that cannot be.

    Examples:
        >>> import torch
        >>> head = ConTLayer('tiny').eval()
        >>> head.in_channels, head.out_channels
        (192, 768)
        >>> head(torch.zeros(5, 192, 14, 14)).shape
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
        # Taken out of a whole network, so that one place builds, initialises and checks.
        whole = ConTNet(
            arch,
            strides=(1, 1, 1, check_integer('stride', stride, low=1)),
            out_indices=(3,),
            position=position,
            pre_norm=pre_norm,
            qkv_bias=qkv_bias,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
        )
        self._options = {k: whole._options[k] for k in ('position', 'pre_norm', 'qkv_bias')}
        self._geometry = dict(stride=stride, window_sizes=whole._geometry['window_sizes'])
        conv = whole.stages[2][-1].conv
        self.in_channels, self.out_channels = conv.in_channels, whole.out_channels[-1]
        # Dicts instead of lists keep the names of the whole network.
        self._last = str(len(whole.stages[2]) - 1)
        last = nn.ModuleDict({self._last: nn.ModuleDict({'conv': conv})})
        self.stages = nn.ModuleDict({'2': last, '3': whole.stages[3]})
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
            raise ValueError(f'crops must be [N, {self.in_channels}, h, w], got {[*x.shape]}')
        x = self.stages['2'][self._last]['conv'](channels_last(x))
        blocks = self.stages['3']
        layout = stage_layout(blocks, x.shape[2:], x)
        for block in blocks:
            x, _ = block(x, layout)
        return x.contiguous()  # see ConTNet.forward

    def owns_key(self, key: str) -> bool:
        """Tell whether a key of the whole network belongs to a part that is built here."""
        return key.startswith((f'stages.2.{self._last}.conv.', 'stages.3.'))
