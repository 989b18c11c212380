"""What the command line reads, and the table that it prints."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from contnet_mm.swap.edit import Swap
from contnet_mm.swap.text.command import default_out, list_changes, parse_options


def test_the_table_shows_before_after_and_why():
    original = Config(dict(model=dict(backbone=dict(type='ResNet', depth=50, name='x' * 40))))
    swap = Swap(
        Config(dict(model=dict(backbone=dict(type='ConTNet')), kinds=[int])),
        {
            ('model', 'backbone'): 'ConTNet.',
            ('kinds', 0): 'No text.',
            **{('lost', i): 'Gone.' for i in (1, 2)},
        },
    )
    assert list_changes(original, swap).splitlines() == [
        '| key | was | is | why |',
        '| --- | --- | --- | --- |',
        "| model.backbone | dict(type='ResNet', depth=50, name='x... | dict(type='ConTNet') "
        '| ConTNet. |',
        "| kinds.0 | - | <class 'int'> | No text. |",
        '| lost.1 and 1 more | - | - | Gone. |',
    ]


def test_options_are_read_like_those_of_a_config():
    words = ['strides=(1,2,2,1)', 'norm_eval=true', 'norm_cfg.type=GN', 'norm_cfg.num_groups=8']
    assert parse_options([*words, 'out_indices=1,3', 'position=relative', 'frozen_stages=-1']) == {
        'strides': (1, 2, 2, 1),
        'norm_eval': True,
        'norm_cfg': dict(type='GN', num_groups=8),
        'out_indices': [1, 3],
        'position': 'relative',
        'frozen_stages': -1,
    }


@pytest.mark.parametrize('word', ['norm_eval', '=1', 'norm_eval=', 'strides=(1,2', 'norm.a.b=1'])
def test_an_option_that_cannot_be_read_is_named(word):
    with pytest.raises(ValueError, match=re.escape(repr(word))):
        parse_options(['norm.a=1', word])


@pytest.mark.parametrize(
    'name, arch, out',
    [
        ('mmdet::fcos/fcos_r50.py', 'tiny', 'fcos_r50_contnet-ti.py'),
        ('some/where/x.json', 'M', 'x_contnet-m.py'),
        ('mmdet::x.py', 'base', 'x_contnet-b.py'),
    ],
)
def test_the_output_is_named_after_the_config_and_the_arch(name, arch, out):
    assert default_out(name, arch) == Path(out)
