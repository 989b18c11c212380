"""The text of a config with ConTNet in it says what was planned, briefly and with its reasons."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DefaultScope

from contnet_mm.swap.edit import Swap, SwapError
from contnet_mm.swap.text.difference import first_difference, state_difference
from contnet_mm.swap.text.source import write_value
from contnet_mm.swap.text.write import (
    check_out,
    is_pure_python,
    read_back,
    relative_base,
    render_child,
    render_flat,
)
from tests.helpers import ROOT

BASE = """
model = dict(
    backbone=dict(type='ResNet', depth=50, init_cfg=dict(type='Pretrained', checkpoint='r50')),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], num_outs=5),
)
pipeline = [dict(type='Load'), dict(type='Normalize', std=[1.0, 1.0, 1.0]), dict(type='Pack')]
load_from = 'r50.pth'
work_dir = 'runs'
"""
CHILD = """\
# base.py with ConTNet in it.
# - model.backbone: ConTNet in place of ResNet.
# - model.backbone.deep_stem: It was pretrained so.
# - model.neck.in_channels.0, model.neck.in_channels.1: Its maps are this wide.
# - pipeline.1.std: The weights were Caffe's.
# - pipeline.2.keys: Packed otherwise.
# - load_from: That was of ResNet.

_base_ = 'base.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='contnet_mm.ConTNet', deep_stem=True),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

pipeline = [
    dict(type='Load'),
    dict(type='Normalize', std=[58.395, 57.12, 57.375]),
    dict(type='Pack', keys=('img',)),
]

load_from = None
"""


def swap_of(original):
    """Return what the planner might make of ``BASE``."""
    config = Config(original.to_dict())
    config.custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)
    config.model.backbone = dict(type='contnet_mm.ConTNet', deep_stem=True)
    config.model.neck.in_channels = [128, 256, 512, 1024]
    config.pipeline[1].std = [58.395, 57.12, 57.375]
    config.pipeline[2]['keys'] = ('img',)
    config.load_from = None
    changes = {
        ('model', 'backbone'): 'ConTNet in place of ResNet.',
        ('model', 'backbone', 'deep_stem'): 'It was pretrained so.',
        ('model', 'neck', 'in_channels', 0): 'Its maps are this wide.',
        ('model', 'neck', 'in_channels', 1): 'Its maps are this wide.',
        ('pipeline', 1, 'std'): "The weights were Caffe's.",
        ('pipeline', 2, 'keys'): 'Packed otherwise.',
        ('load_from',): 'That was of ResNet.',
    }
    return Swap(config, changes, ['the schedule'])


@pytest.fixture
def base(tmp_path):
    path = tmp_path / 'base.py'
    path.write_text(BASE)
    return path


@pytest.fixture
def original(base):
    return Config.fromfile(base)


def write_base(path, values):
    """Write a config that holds values, without the writer under test."""
    content = pickle.dumps(values).hex()
    # MMEngine can take an import for the pure-Python style.
    path.write_text(f"globals().update(__import__('pickle').loads(bytes.fromhex('{content}')))\n")
    return path


def test_a_child_states_what_changes_with_the_reasons_at_its_head(original, base, tmp_path):
    swap = swap_of(original)
    text = render_child(original, swap, 'base.py')
    assert text == CHILD
    read_back(text, tmp_path / 'new.py', swap.config)


def test_a_lost_key_is_in_the_head_and_the_dict_is_stated_whole(original):
    swap = swap_of(original)
    swap.config = Config(original.to_dict())
    del swap.config.model.backbone['init_cfg']
    swap.changes = {('model', 'backbone', 'init_cfg'): 'No weights.'}
    assert render_child(original, swap, 'base.py') == (
        '# base.py with ConTNet in it.\n# - model.backbone.init_cfg: No weights.\n\n'
        "_base_ = 'base.py'\n"
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=50))\n"
    )


def test_a_long_list_of_keys_with_one_reason_is_wrapped():
    swap = Swap(Config(dict(x=1)), {('x', number): 'Why.' for number in range(40)})
    head, text = render_flat(swap, 'any.py').split('\n\n')
    lines = head.splitlines()[1:]
    assert lines[0].startswith('# - x.0, x.1, ') and lines[-1].endswith(' x.39: Why.')
    assert len(lines) > 1 and all(len(line) <= 100 for line in lines)
    assert all(line.startswith('#   x.') for line in lines[1:]) and text == 'x = 1\n'


def test_what_is_equal_is_said_once_and_comes_back(tmp_path):
    steps = [dict(type='Load', to_float32=False), dict(type='Resize', scale=(64, 64))]
    loader = dict(dataset=dict(type='A', root='data/a', pipeline=steps))
    original = Config(dict(val=loader, test=loader, test_pipeline=steps))
    (tmp_path / 'base.py').write_text(original.pretty_text)
    swap = Swap(Config.fromfile(tmp_path / 'base.py'))
    for key in ('val', 'test'):
        new = dict(type='B', root='data/b', pipeline=steps, classes=('one', 'two', 'three'))
        swap.set((key, 'dataset'), new, 'Own.')
    text = render_child(original, swap, 'base.py', 'Title.')
    assert text.startswith('# Title.\n') and text.endswith('\nval = test\n')
    assert text.count('Resize') == text.count('pipeline=test_pipeline') == 1
    read_back(text, tmp_path / 'out.py', swap.config)


def test_a_flat_config_says_all_with_the_reasons(original, tmp_path):
    swap = swap_of(original)
    text = render_flat(swap, 'mmdet::x.py')
    assert text.startswith('# mmdet::x.py with ConTNet in it, self-contained.\n# - model')
    assert '_base_' not in text and "work_dir = 'runs'\n" in text
    for why in swap.changes.values():
        assert text.count(f': {why}\n') == 1
    read_back(text, tmp_path / 'elsewhere.py', swap.config)


def test_what_mmengine_would_replace_in_the_text_survives(tmp_path, monkeypatch):
    monkeypatch.setenv('HERE', 'replaced')
    for text in (
        '{{ fileDirname }}',
        '{{$HERE:}}',
        "{{'$HERE:x'}}",
        '{{ _base_.model }}',
        '{{{{ fileBasename }}',
    ):
        # The name is set nowhere, which would be an error.
        swap = Swap(Config(dict(name=text)), {('name',): 'It was\n{{$NO_NAME:}}.'})
        source = render_flat(swap, '{{$NO_NAME:}}.py')
        assert read_back(source, tmp_path / 'new.py', swap.config).name == text


# Values and configs at random.
KEYS = st.one_of(
    st.sampled_from(['type', 'a', 'b', 'std', 'class', 'None', '__debug__', 'self', 'a.b', 'ﬁ']),
    st.text(max_size=4),
)
FRAGMENTS = ['{{', '}}', '$', 'fileDirname', ' ', "'", '"', '\\', '\n', 'x' * 30, 'é', '\u2028']
STRINGS = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map(''.join)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), STRINGS, st.binary(max_size=4)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS | st.integers(0, 9), inner, max_size=4),
    ),
    max_leaves=12,
)
VARIABLES = st.dictionaries(st.sampled_from(['model', 'x', 'load_from', 'z_9']), VALUES, min_size=1)


@st.composite
def altered(draw, value, at_top=True):
    """Return a value that shares much with another; at the top no key gets lost."""
    if not isinstance(value, dict):
        return draw(st.one_of(st.just(value), VALUES))
    new = {}
    for key, item in value.items():
        fate = draw(st.sampled_from(['keep', 'alter', 'alter', 'lose']))
        if fate != 'lose' or at_top:
            new[key] = item if fate == 'keep' else draw(altered(item, at_top=False))
    added = draw(VARIABLES if at_top else st.dictionaries(KEYS, VALUES, max_size=1))
    return {**added, **new}


PAIRS = VARIABLES.flatmap(lambda value: st.tuples(st.just(value), altered(value)))
QUICK = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUICK
@given(PAIRS)
def test_a_child_over_any_config_gives_any_other(tmp_path, pair):
    base = write_base(tmp_path / 'base.py', pair[0])
    original, swap = Config.fromfile(base), Swap(Config(pair[1]))
    path = tmp_path / 'child.py'
    path.write_text(render_child(original, swap, 'base.py'), encoding='utf-8')
    got = Config.fromfile(path)
    assert sort(got.to_dict()) == sort(pair[1])


@QUICK
@given(VARIABLES)
def test_a_flat_config_gives_any_values(tmp_path, values):
    path = tmp_path / 'flat.py'
    path.write_text(render_flat(Swap(Config(values)), 'any.py'), encoding='utf-8')
    assert sort(Config.fromfile(path).to_dict()) == sort(values)


def sort(value):
    """Return a value in a form that tells kinds, nan and the sign of 0.0 apart."""
    if isinstance(value, dict):
        return 'dict', sorted((repr(key), sort(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [sort(item) for item in value]
    return type(value).__name__, repr(value)


@settings(QUICK, max_examples=40)
@given(VARIABLES)
def test_ruff_leaves_the_text_as_it_is(values):
    why = {('model', key): 'Why.' for key in ('type', 'a', 'b')}
    text = render_flat(Swap(Config(values), why), 'any.py')
    assume("\\'" not in text)  # ruff swaps the quotes where that saves backslashes
    assert_formatted(text)


def test_ruff_leaves_the_text_of_a_swap_as_it_is(original):
    swap = swap_of(original)
    long = 'x' * 90
    swap.config.lengths = [dict(a='x' * length, b=1) for length in range(65, 85)]
    swap.config.a_long_name = long
    swap.config.infinite_name_of_a_variable_that_is_as_long_as_a_line_can_be_and_longer_by_some = [
        float('-inf')
    ]
    swap.config.many = dict(one=tuple(range(40)), two=dict(a=long, b=(long,)), three=1e300)
    for text in (render_child(original, swap, 'base.py'), render_flat(swap, 'base.py')):
        assert_formatted(text)


def assert_formatted(text):
    command = [sys.executable, '-m', 'ruff', 'format', '--config', ROOT / 'pyproject.toml', '-']
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert result.stdout == text


def test_a_dict_of_another_type_is_stated_whole():
    old = dict(optimizer=dict(type='SGD', lr=0.1))
    new = dict(optimizer=dict(type='AdamW', lr=0.1))
    whole = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.1))
    assert state_difference(old, new) == whole


@pytest.mark.parametrize(
    'old, new, where',
    [
        (dict(a=1), dict(a=True), ('a',)),
        (dict(a=1), dict(a=1.0), ('a',)),
        (dict(a=[1]), dict(a=(1,)), ('a',)),
        (dict(a=[dict(b=1), 2]), dict(a=[dict(b=1), 3]), ('a', 1)),
        (dict(a=dict(b=None)), dict(a=dict()), ('a', 'b')),
        (dict(a=dict()), dict(a=dict(b=None)), ('a', 'b')),
        (dict(a=float('nan'), b=1), dict(b=1, a=float('nan')), None),
    ],
)
def test_configs_differ_where_kinds_or_missing_keys_do(old, new, where):
    assert first_difference(old, new) == where


def test_a_child_cannot_lose_a_variable(original):
    swap = swap_of(original)
    swap.config.pop('work_dir')
    with pytest.raises(SwapError, match='work_dir is in the config .*--flat'):
        render_child(original, swap, 'base.py')


@pytest.mark.parametrize('before', [dict(_delete_=True, b=1), dict(c=1)])
def test_a_child_cannot_repeat_a_delete_that_is_left_over(before):
    swap = Swap(Config(dict(a=dict(_delete_=True, c=1))))
    with pytest.raises(SwapError, match='_delete_ is left over .*--flat'):
        render_child(Config(dict(a=before)), swap, 'base.py')


def test_a_left_over_delete_that_stays_does_no_harm(tmp_path):
    original = Config.fromfile(write_base(tmp_path / 'base.py', dict(a=dict(_delete_=True, b=1))))
    swap = Swap(Config(dict(a=dict(_delete_=True, b=2))))
    text = render_child(original, swap, 'base.py')
    assert text.endswith('\na = dict(b=2)\n')
    read_back(text, tmp_path / 'new.py', swap.config)


@pytest.mark.parametrize(
    'values, message',
    [
        (dict(model=dict(parts=[dict(run=sum)])), 'model.parts.0.run is <built-in function sum>'),
        (dict(path=Path('x')), r"path is PosixPath\('x'\), a PosixPath"),
        (dict(kind=int), "kind is <class 'int'>, a type"),
        ({'no name': 1}, "'no name' cannot be the name of a variable"),
        ({'class': 1}, "'class' cannot be"),
        ({'dict': 1}, "'dict' cannot be"),
    ],
)
def test_what_has_no_source_is_named(values, message):
    with pytest.raises(SwapError, match=message):
        render_flat(Swap(Config(values)), 'any.py')


@pytest.mark.parametrize(
    'value, source',
    [
        (dict(), 'dict()'),
        ((1,), '(1,)'),
        ({'a.b': 1, 'c': (2, [])}, "{'a.b': 1, 'c': (2, [])}"),
        ({1: -1e-05, 'lambda': 1e300}, "{1: -1e-05, 'lambda': 1e300}"),
        ("it's", '"it\'s"'),
        ("''\"", "'\\'\\'\"'"),
        (b'it\'s "', "b'it\\'s \"'"),
        (float('-inf'), "float('-inf')"),
    ],
)
def test_values_are_written_as_here(value, source):
    assert write_value(value) == source
    assert eval(source) == value


@pytest.mark.parametrize('folder', ['real', 'link'])
def test_a_base_is_named_relative_to_the_folder_of_the_output(tmp_path, monkeypatch, folder):
    (tmp_path / 'real' / 'a').mkdir(parents=True)
    (tmp_path / 'link').symlink_to('real')
    (tmp_path / 'out' / 'deep').mkdir(parents=True)
    (tmp_path / 'real' / 'common.py').write_text('x = 1\n')
    (tmp_path / 'real' / 'a' / 'c.py').write_text("_base_ = '../common.py'\n")
    monkeypatch.chdir(tmp_path)
    out = Path('out', 'deep', 'new.py')
    name = relative_base(f'{folder}/a/c.py', out)
    assert name == f'../../{folder}/a/c.py' == relative_base(f'{tmp_path}/{name[6:]}', out)
    out.write_text(f'_base_ = {name!r}\n')
    assert Config.fromfile(out).x == 1


def test_names_of_a_library_stay_and_ours_are_found(tmp_path):
    assert relative_base('mmdet::fcos/x.py', tmp_path / 'new.py') == 'mmdet::fcos/x.py'
    name = relative_base('retinanet_contnet-ti_fpn_demo.py', tmp_path / 'new.py')
    assert (tmp_path / name).is_file() and '\\' not in name and not os.path.isabs(name)
    with pytest.raises(ValueError, match='nowhere.py is neither a file'):
        relative_base('nowhere.py', tmp_path / 'new.py')


def test_reading_back_leaves_no_file(original, base):
    swap = swap_of(original)
    read_back(render_child(original, swap, 'base.py'), base.with_name('new.py'), swap.config)
    assert [path.name for path in base.parent.iterdir()] == ['base.py']


@pytest.mark.parametrize(
    'text, message',
    [
        (CHILD.replace('58.395', '58.0'), 'first difference is at pipeline.1.std.0'),
        (CHILD.replace('load_from = None\n', ''), 'first difference is at load_from'),
        (CHILD + 'extra = None\n', 'first difference is at extra'),
        (CHILD + 'x = (\n', 'does not parse: SyntaxError'),
        (CHILD.replace('base.py', 'bass.py'), 'does not parse: FileNotFoundError'),
        (CHILD + "model['neck'] = 1 / 0\n", 'does not parse: ZeroDivisionError'),
    ],
)
def test_a_text_that_says_something_else_is_refused(original, base, text, message):
    with pytest.raises(SwapError, match=message):
        read_back(text, base.with_name('new.py'), swap_of(original).config)
    assert [path.name for path in base.parent.iterdir()] == ['base.py']


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('base.py', 'base.py exists'),
        ('lost.py', 'lost.py exists'),
        ('new.yaml', 'new.yaml must end in .py'),
        ('no/new.py', 'no is no folder; make it'),
    ],
)
def test_an_output_that_is_there_or_cannot_be_is_named(base, name, message):
    base.with_name('lost.py').symlink_to('nowhere')
    with pytest.raises(ValueError, match=message):
        check_out(base.parent / name)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(ValueError, match='nothing can be written to .*no'):
        read_back('x = 1\n', tmp_path / 'no' / 'new.py', Config(dict(x=1)))


@pytest.fixture
def pure(tmp_path):
    """A classifier in pure-Python style, in two files."""
    (tmp_path / 'pure_base.py').write_text("""
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet
from mmpretrain.models.losses import CrossEntropyLoss
from torch.optim import SGD

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead, num_classes=5, in_channels=512, loss=dict(type=CrossEntropyLoss)
    ),
)
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.1))
""")
    path = tmp_path / 'pure.py'
    path.write_text("""
from mmengine.config import read_base
from mmengine.optim import OptimWrapper

with read_base():
    from .pure_base import *

model.update(dict(head=dict(num_classes=7)))
optim_wrapper.update(dict(type=OptimWrapper))
""")
    return path


def test_a_pure_python_config_is_written_flat_and_builds(pure, tmp_path):
    from mmengine.registry import MODELS, OPTIMIZERS

    original = Config.fromfile(pure)
    assert is_pure_python(original)
    swap = Swap(Config.fromfile(pure))
    swap.config.model.backbone = dict(type='contnet_mm.ConTNet', arch='tiny', out_indices=(3,))
    swap.config.model.head.in_channels = 768
    swap.changes = {('model', 'backbone'): 'ConTNet in place of ResNet.'}
    with pytest.raises(SwapError, match='pure-Python style is inherited by none'):
        render_child(original, swap, 'pure.py')
    out = tmp_path / 'new.py'
    text = render_flat(swap, 'pure.py')
    read_back(text, out, swap.config)
    out.write_text(text)
    assert 'import ' not in text.replace('_imports', '')
    assert "type='mmpretrain.models.LinearClsHead'" in text and ': ConTNet in place' in text
    config = Config.fromfile(out)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    assert type(model.backbone).__name__ == 'ConTNet' and model.head.fc.out_features == 7
    assert OPTIMIZERS.get(config.optim_wrapper.optimizer.type).__name__ == 'SGD'
    assert config.optim_wrapper.type == 'mmengine.optim.OptimWrapper'


def test_a_class_that_no_registry_looks_up_is_no_string(pure):
    pure.write_text(
        'from torch.nn import ReLU\nmodel = dict(type=ReLU, layer=ReLU)\n', encoding='utf-8'
    )
    with pytest.raises(SwapError, match='model.layer is ReLU, a LazyObject'):
        render_flat(Swap(Config.fromfile(pure)), 'pure.py')
