"""What runs in the sandbox leaves no trace, and fails with one kind of error."""

import logging
import warnings

import pytest

from contnet_mm.swap.edit import SwapError
from contnet_mm.swap.sandbox import MissingDependencyError, failing, silence


def test_nothing_is_printed_logged_or_warned_of_in_silence(capsys, caplog, recwarn):
    level = logging.root.manager.disable
    with silence():
        print('printed')
        logging.getLogger('any').error('logged')
        warnings.warn('warned', stacklevel=1)
    assert capsys.readouterr().out == '' and not caplog.records and not recwarn.list
    assert logging.root.manager.disable == level
    print('printed')
    assert capsys.readouterr().out == 'printed\n'


def test_a_config_that_exits_is_an_error_like_any_other():
    with pytest.raises(SwapError, match='^reading: SystemExit: 3'), failing('reading'):
        raise SystemExit(3)


@pytest.mark.parametrize(
    ('error', 'hint'),
    [
        (ModuleNotFoundError("No module named 'mmpretrain'"), 'contnet_mm doctor'),
        (ImportError('Please install Detectron2 first.'), 'installed first'),
        (RuntimeError('skimage is not installed, please install it by: pip'), 'installed first'),
        (RuntimeError('carafe_forward_impl: implementation for device cpu not found.'), 'GPUs'),
    ],
)
def test_what_is_missing_is_told_by_the_error(error, hint):
    with pytest.raises(MissingDependencyError, match=hint), failing('a step'):
        raise error


def test_an_error_names_the_step_and_keeps_its_cause():
    with pytest.raises(SwapError, match='^a step: KeyError: ') as caught, failing('a step'):
        raise KeyError('neck')
    assert not isinstance(caught.value, MissingDependencyError)
    assert isinstance(caught.value.__cause__, KeyError)
