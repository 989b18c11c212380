"""What a config says of weights and of the optimizer, where it names the old backbone."""

from __future__ import annotations

from torch import nn

from contnet_mm.swap.edit import KeyPath, Swap, dotted, walk
from contnet_mm.swap.task import type_name

MODULE = 'contnet_mm'
CONSTRUCTOR = 'contnet_mm.LearningRateDecayOptimWrapperConstructor'
# Layer-wise decay of MMDetection and MMSegmentation, which know a few classes. MMPretrain's
# constructor asks the model, of which ConTNet answers.
DECAYS = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')
DECAY_KEYS = ('decay_rate', 'decay_type', 'num_layers', 'layer_decay_rate')
PARAMWISE = ('optim_wrapper', 'paramwise_cfg')
TABLES = ('absolute_pos_embed', 'relative_position_bias_table', 'pos_embed')


def has_weights(cfg: object) -> bool:
    """Return whether an ``init_cfg`` loads a checkpoint."""
    cfgs = cfg if isinstance(cfg, (list, tuple)) else [cfg]
    return any(type_name(each) == 'Pretrained' for each in cfgs)


def starts_from_weights(swap: Swap, root: KeyPath) -> bool:
    """Return whether the old config starts from weights for its backbone."""
    parts = [swap.get(path) for path in ((*root, 'backbone'), root, ('model',))]
    return bool(
        any(part.get('pretrained') for part in parts)
        or any(has_weights(part.get('init_cfg')) for part in parts[:2])
        or swap.config.get('load_from')
    )


def remove_weights(swap: Swap, root: KeyPath) -> None:
    """Remove what would be loaded into the old network."""
    why = 'Weights of another network.'
    for path in dict.fromkeys([('model',), root]):
        if swap.get((*path, 'pretrained')):
            swap.set((*path, 'pretrained'), None, why)
        if has_weights(swap.get((*path, 'init_cfg'))):
            swap.set((*path, 'init_cfg'), None, why)
    if swap.config.get('load_from'):
        swap.set(('load_from',), None, why)
    for path, cfg in walk(swap.get(root), root):
        ours = str(cfg.get('type')).startswith(f'{MODULE}.')
        if not ours and has_weights(cfg.get('init_cfg')):
            swap.add_warning(f'{dotted(path)} still starts from weights: {cfg["init_cfg"]}')


def add_import(swap: Swap) -> None:
    """Name this package in ``custom_imports``, beside what is there."""
    why = 'Registers contnet_mm.ConTNet.'
    current = swap.config.get('custom_imports')
    if not current:
        imports = dict(imports=[MODULE], allow_failed_imports=False)
        swap.set(('custom_imports',), imports, why)
        return
    names = current['imports']
    names = [names] if isinstance(names, str) else list(names)
    if MODULE not in names:
        swap.set(('custom_imports', 'imports'), [*names, MODULE], why)


def fix_optimizer(swap: Swap, old: nn.Module, new: nn.Module) -> None:
    """Fix what the optimizer's config says of parameters of the old backbone."""
    cfg = swap.get(PARAMWISE)
    name = type(old).__name__
    if type_name(dict(type=swap.get(('optim_wrapper', 'constructor')))) in DECAYS:
        _fix_decay(swap)
    if not cfg:
        return
    keys = dict(cfg.get('custom_keys') or {})
    table = next((keys[key] for key in TABLES if key in keys), None)
    if table is not None and 'position' not in keys:
        keys['position'] = dict(table)
        why = "The same for ConTNet's tables."
        swap.set((*PARAMWISE, 'custom_keys', 'position'), keys['position'], why)
    scaled = any(cfg.get(key, 1) != 1 for key in ('bias_lr_mult', 'bias_decay_mult'))
    if scaled and not any(key.startswith('backbone') for key in keys) and not _has_biases(old):
        why = f'Biases are treated apart, and those of {name} were of norms alone.'
        swap.set((*PARAMWISE, 'custom_keys'), {**keys, 'backbone': dict(lr_mult=1.0)}, why)

    def names_part(key: str, module: nn.Module) -> bool:
        return any(key in f'backbone.{each}' for each, _ in module.named_parameters())

    dead = [k for k in keys if k not in TABLES and names_part(k, old) and not names_part(k, new)]
    if dead:
        swap.add_warning(
            f'{len(dead)} custom_keys of the optimizer name parts of {name} and match nothing in '
            f'ConTNet, the first is {dead[0]}'
        )


def _fix_decay(swap: Swap) -> None:
    why = "Layer-wise decay by the depth of ConTNet's blocks; its rate was for another depth."
    cfg = swap.get(PARAMWISE)
    rate = cfg.get('decay_rate', cfg.get('layer_decay_rate'))
    swap.set(('optim_wrapper', 'constructor'), CONSTRUCTOR, why)
    kept = {key: value for key, value in cfg.items() if key not in DECAY_KEYS}
    # The libraries' constructors leave biases, norms and position tables without weight decay.
    plain = dict(flat_decay_mult=0.0, custom_keys=dict(position=dict(decay_mult=0.0)))
    swap.set(PARAMWISE, {'layer_decay_rate': rate, **plain, **kept}, why)
    swap.add_warning(f'layer_decay_rate={rate} was chosen for another number of layers')


def _has_biases(module: nn.Module) -> bool:
    norms = {id(p) for m in module.modules() if hasattr(m, 'running_mean') for p in m.parameters()}
    return any(
        name.endswith('.bias') and id(parameter) not in norms
        for name, parameter in module.named_parameters()
    )
