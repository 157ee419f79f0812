"""The names that a user starts from, each loaded when it is first used; everything else is in the modules.

nbdev_export writes the line with the version and leaves the rest as it is. nbs/api.ipynb explains the choice of names.
"""
__version__ = "0.0.1"

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {'load_data': 'data', 'MLP': 'networks', 'train_ntk': 'training', 'train_kkt': 'training', 'NTKObjective': 'objectives',
         'KKTObjective': 'objectives', 'MulticlassKKTObjective': 'objectives', 'reconstruct': 'splitting', 'SplitRule': 'splitting',
         'Every': 'splitting', 'nearest_l2': 'metrics', 'recover': 'identifiability',
         'invert_gradient': 'identifiability', 'Experiment': 'runs', 'run': 'runs'}
__all__ = list(_HOME)

if TYPE_CHECKING:  # the same names, for type checkers and completion; tests/test_api.py compares the two lists
    from .data import load_data as load_data
    from .identifiability import invert_gradient as invert_gradient, recover as recover
    from .metrics import nearest_l2 as nearest_l2
    from .networks import MLP as MLP
    from .objectives import KKTObjective as KKTObjective, MulticlassKKTObjective as MulticlassKKTObjective, NTKObjective as NTKObjective
    from .runs import Experiment as Experiment, run as run
    from .splitting import Every as Every, SplitRule as SplitRule, reconstruct as reconstruct
    from .training import train_kkt as train_kkt, train_ntk as train_ntk

def __getattr__(name: str):
    "Import the module that `name` lives in (PEP 562), so that `import samplesplit_nb` itself does not import torch"
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(f'.{_HOME[name]}', __name__), name)
    return value

def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
