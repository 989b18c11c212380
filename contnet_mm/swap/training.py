"""What a config says of weights and of the optimizer, where it names the old backbone."""

from __future__ import annotations

from torch import nn

from contnet_mm.swap.backbone import has_weights
from contnet_mm.swap.edit import Editor, Path, walk
from contnet_mm.swap.task import type_name

MODULE = 'contnet_mm'
CONSTRUCTOR = 'contnet_mm.LearningRateDecayOptimWrapperConstructor'
# Layer-wise decay of the libraries; those of MMDetection and MMSegmentation know a few classes.
DECAYS = (
    'LearningRateDecayOptimizerConstructor',
    'LayerDecayOptimizerConstructor',
    'LearningRateDecayOptimWrapperConstructor',
)
TABLES = ('absolute_pos_embed', 'relative_position_bias_table', 'pos_embed')


def starts_from_weights(editor: Editor, root: Path) -> bool:
    """Tell whether the old config starts from weights for its backbone."""
    model = editor.get(root)
    backbone = model['backbone']
    return bool(
        has_weights(backbone.get('init_cfg'))
        or backbone.get('pretrained')
        or model.get('pretrained')
        or has_weights(model.get('init_cfg'))
        or editor.get(('model', 'pretrained'))
        or editor.config.get('load_from')
    )


def take_out_weights(editor: Editor, root: Path) -> None:
    """Take out what would be loaded into the old network."""
    why = 'Weights of another network.'
    for path in dict.fromkeys([('model',), root]):
        for key in ('pretrained', 'init_cfg'):
            value = editor.get((*path, key))
            if value if key == 'pretrained' else has_weights(value):
                editor.set((*path, key), None, why)
    if editor.config.get('load_from'):
        editor.set(('load_from',), None, why)
    for path, cfg in walk(editor.get(root), root):
        ours = str(cfg.get('type')).startswith(f'{MODULE}.')
        if not ours and has_weights(cfg.get('init_cfg')):
            editor.judge(f'{".".join(map(str, path))} still starts from weights: {cfg["init_cfg"]}')


def add_import(editor: Editor) -> None:
    """Name this package in ``custom_imports``, beside what is there."""
    why = 'Registers contnet_mm.ConTNet.'
    current = editor.config.get('custom_imports')
    if not current:
        imports = dict(imports=[MODULE], allow_failed_imports=False)
        editor.set(('custom_imports',), imports, why)
        return
    names = current['imports']
    names = [names] if isinstance(names, str) else list(names)
    if MODULE not in names:
        editor.set(('custom_imports', 'imports'), [*names, MODULE], why)


def mend_optimizer(editor: Editor, old: nn.Module, new: nn.Module) -> None:
    """Mend what the optimizer's config says of parameters of the old backbone."""
    path = ('optim_wrapper', 'paramwise_cfg')
    cfg = editor.get(path)
    constructor = type_name(dict(type=editor.get(('optim_wrapper', 'constructor'))))
    if constructor in DECAYS:
        _mend_decay(editor, path, constructor)
    if not cfg:
        return
    keys = dict(cfg.get('custom_keys') or {})
    table = next((keys[key] for key in TABLES if key in keys), None)
    if table is not None and 'position' not in keys:
        editor.set(
            (*path, 'custom_keys', 'position'), dict(table), "The same for ConTNet's tables."
        )
    scaled = any(cfg.get(key, 1) != 1 for key in ('bias_lr_mult', 'bias_decay_mult'))
    if scaled and not any(key.startswith('backbone') for key in keys) and not _has_biases(old):
        why = f'Biases are treated apart, and those of {type(old).__name__} were of norms alone.'
        editor.set((*path, 'custom_keys'), {**keys, 'backbone': dict(lr_mult=1.0)}, why)
    was, now = (
        [f'backbone.{name}' for name, _ in module.named_parameters()] for module in (old, new)
    )
    dead = [
        key
        for key in keys
        if key not in TABLES
        and any(key in name for name in was)
        and not any(key in name for name in now)
    ]
    if dead:
        editor.judge(
            f'{len(dead)} custom_keys of the optimizer name parts of {type(old).__name__} and '
            f'match nothing in ConTNet, the first is {dead[0]}'
        )


def _mend_decay(editor: Editor, path: Path, constructor: str) -> None:
    if constructor == DECAYS[-1]:  # asks the model, of which ConTNet answers
        return
    why = "Layer-wise decay by the depth of ConTNet's blocks; its rate was for another depth."
    cfg = editor.get(path)
    rate = cfg.get('decay_rate', cfg.get('layer_decay_rate'))
    editor.set(('optim_wrapper', 'constructor'), CONSTRUCTOR, why)
    kept = {
        key: value
        for key, value in cfg.items()
        if key not in ('decay_rate', 'decay_type', 'num_layers', 'layer_decay_rate')
    }
    # The libraries' constructors leave biases, norms and position tables without weight decay.
    plain = dict(flat_decay_mult=0.0, custom_keys=dict(position=dict(decay_mult=0.0)))
    editor.set(path, dict(layer_decay_rate=rate, **plain, **kept), why)
    editor.judge(f'layer_decay_rate={rate} was chosen for another number of layers')


def _has_biases(module: nn.Module) -> bool:
    norms = {id(p) for m in module.modules() if hasattr(m, 'running_mean') for p in m.parameters()}
    return any(
        name.endswith('.bias') and id(parameter) not in norms
        for name, parameter in module.named_parameters()
    )
