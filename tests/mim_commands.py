"""Commands of mim, read as mim and the scripts that it runs read them."""

import argparse
import functools
import importlib
import re
import shlex
from pathlib import Path

from mmengine.config import DictAction

from contnet_mm.doctor.facts import origin


def parse(command):
    """Return what mim understands of a command, as a dict."""
    _, verb, *words = shlex.split(command)
    cli = importlib.import_module(f'mim.commands.{verb}').cli
    return {'verb': verb, **cli.make_context(verb, words).params}


@functools.cache
def known_options(library, verb):
    """Return the options of the script that mim runs."""
    script = Path(origin(library)).parent / '.mim' / 'tools' / f'{verb}.py'
    return set(re.findall(r"'(--[\w-]+)'", script.read_text()))


def changes_of(said):
    """Return the settings that a command changes, as a dict."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_known_args(said['other_args'])[0].cfg_options
