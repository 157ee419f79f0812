"Reconstruction by simulating the training, and splitting for any functional of a weighted sample"
import copy, math
from typing import Any, Self
import torch
from torch import Tensor, nn
from samplesplit_nb.checks import is_dense, require, require_candidates, require_count, require_number
from samplesplit_nb.objectives import ReconstructionObjective, _check_constants, _check_pair
from samplesplit_nb.penalties import ValueAndGrad
from samplesplit_nb.simulation import (Adjoint, Differentiated, Fineness, LOSSES, Path, SoftCurvatureReLU,
    TrainingRecipe, weighted_loss)
from samplesplit_nb.tangents import ModuleTangent

# how far the end of a simulation is from theta, given the steps made and to make
def _squared(made, wanted):
    return sum((a - b).square().sum() for a, b in zip(made, wanted))/sum(
        b.square().sum() for b in wanted)

def _by_layer(made, wanted):
    moved = [(a, b) for a, b in zip(made, wanted) if bool((b != 0).any())]
    return sum(_squared([a], [b]) for a, b in moved)/len(moved)

def _cosine(made, wanted):
    dot = sum((a*b).sum() for a, b in zip(made, wanted))
    size = lambda v: sum(p.square().sum() for p in v).sqrt()
    return 1 - dot/(size(made)*size(wanted)).clamp_min(1e-30)

DISTANCES = {'squared': _squared, 'layers': _by_layer, 'cosine': _cosine}

class _Functional(ReconstructionObjective):
    "G(mu) of the weighted sample mu = sum_i lam_i delta(x_i)"
    labels:Tensor # (k,)
    slots:Tensor # (k,)
    def multipliers(self, x): require(False, 'lr_multipliers', None, 'a number here',
        'no closed form eliminates them; 0 keeps them as they are')
    def weighted_sum(self, x, lam): require(False, 'objective', type(self).__name__,
        'one that is quadratic in lam', "leave out peeling and step='quartic'")
    def select(self, parents:Tensor)->Self:
        other = copy.copy(self)
        other.labels = self.labels[parents.to(self.labels.device)]
        other.slots = self.slots[parents.to(self.slots.device)]
        return other

class SimulatedTraining(_Functional):
    "Train on the candidates and compare: |theta_end - theta|^2 / |theta - theta_0|^2"
    def __init__(self,
        model:nn.Module, init:nn.Module, labels:Tensor, recipe:TrainingRecipe,
        fineness:Fineness=Fineness(), sharpness:float|None=30., distance:str='squared',
        shape=None, chunk_size:int|None=None, box=None, box_weight:float=.1, **bounds):
        soft = None if sharpness is None else SoftCurvatureReLU(sharpness)
        shape = shape or (model.widths[0],)
        self.exact, end = ModuleTangent(init, shape), ModuleTangent(model, shape)
        self.tangent = self.exact if soft is None else self.exact.with_activation(soft)
        _check_constants(init, model)
        _check_pair(self.tangent, end)
        super().__init__([w.detach() for w in end.weights], end.d, box, box_weight, **bounds)
        self.recipe, self.fineness, self.distance = recipe, fineness, distance
        require(distance in DISTANCES, 'distance', repr(distance), f'one of {tuple(DISTANCES)}', "'squared' is the default")
        self.chunk_size, self.labels = chunk_size, labels.to(self.target[0].device)
        self.slots = torch.arange(len(labels), device=self.labels.device)
        self._simulator()
    def _simulator(self):
        start = [w.detach() for w in self.tangent.weights]
        scale = math.sqrt(sum(s.double().square().sum().item() for s in self._step(self.target)))
        require(scale > 0, 'model', '<theta = theta_0>', 'a network that has moved', 'give both')
        loss = weighted_loss(self.tangent, self.recipe.loss, self.chunk_size)
        return Differentiated(loss, start, scale, self.recipe, self.fineness)
    def _step(self, theta): return [t - w.detach() for t, w in zip(theta, self.tangent.weights)]
    def smoothed(self, sharpness)->Self:
        other = copy.copy(self)
        if sharpness is not None: other.tangent = self.exact.with_activation(SoftCurvatureReLU(sharpness))
        return other
    def check(self, x, lam):
        super().check(x, lam)
        require(len(x) == len(self.labels), 'x.shape', tuple(x.shape),
                f'({len(self.labels)}, {self.d}), one candidate per label',
                'use objective.select(parents) after a split')
    def simulate(self, x, lam)->Path:
        with torch.no_grad(): return self._simulator()(x, self.labels, lam, self.slots)
    def loss(self, x:Tensor, lam:Tensor)->Tensor:
        "without a graph"
        return DISTANCES[self.distance](self._step(self.simulate(x, lam).end), self._step(self.target))
    def _back(self, x, lam):
        path = self.simulate(x, lam)
        with torch.enable_grad():
            made = [s.requires_grad_() for s in self._step(path.end)]
            value = DISTANCES[self.distance](made, self._step(self.target))
            slope = torch.autograd.grad(value, made, materialize_grads=True)
        return value.detach(), self._simulator().adjoint(path, slope, x.detach(), self.labels, lam.detach())
    def value_and_grad(self, x, lam)->ValueAndGrad:
        value, back = self._back(x, lam)
        return self.penalised(x.detach(), lam.detach(), value, back.x, back.w)
    def residual(self, x, lam, total=None)->list: # of `Taken`
        return self._back(x, lam)[1].taken
    def inner(self, vector:list, x:Tensor)->Tensor:
        "-1/2 dG/dmu at x: so that S is -2 lam Hess of it"
        loss = self._simulator().loss
        total = 0
        for t in vector:
            u = loss.along(t.theta, t.slope, x, self.labels)
            total = total + (u if t.share is None else u*self._share(t, x))
        return -total/2
    def _share(self, t, x):
        raise NotImplementedError
