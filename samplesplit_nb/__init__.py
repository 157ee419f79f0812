"""The names that a user starts from, each loaded when it is first used; everything else is in the modules.

nbdev_export writes the line with the version and leaves the rest as it is. nbs/api.ipynb explains the choice.
"""
__version__ = "0.0.1"

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    'load_data': 'data', 'MLP': 'networks', 'train_ntk': 'training', 'NTKObjective': 'objectives',
    'KKTObjective': 'objectives', 'Descent': 'descent', 'Splitting': 'splitting',
    'SplitRule': 'splitting', 'Every': 'splitting', 'reconstruct': 'splitting',
    'nearest_l2': 'metrics', 'invert_gradient': 'inversion', 'certify': 'certificates',
    'Experiment': 'settings', 'run': 'runs'}
__all__ = list(_HOME)

if TYPE_CHECKING:  # the same names, for type checkers and completion; tests/test_api.py compares the lists
    from .certificates import certify as certify
    from .data import load_data as load_data
    from .descent import Descent as Descent
    from .inversion import invert_gradient as invert_gradient
    from .metrics import nearest_l2 as nearest_l2
    from .networks import MLP as MLP
    from .objectives import KKTObjective as KKTObjective, NTKObjective as NTKObjective
    from .runs import run as run
    from .settings import Experiment as Experiment
    from .splitting import Every as Every, Splitting as Splitting, SplitRule as SplitRule
    from .splitting import reconstruct as reconstruct
    from .training import train_ntk as train_ntk

def __getattr__(name: str):
    "Import the module that `name` lives in (PEP 562): `import samplesplit_nb` itself does not import torch"
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(f'.{_HOME[name]}', __name__), name)
    return value

def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
