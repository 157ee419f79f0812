"Training, simulated: a few accurate steps in place of thousands, and their derivative"
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from samplesplit_nb.checks import (
    NumericalError, require, require_count, require_number, require_seed, seeded)
from samplesplit_nb.networks import MLP, frozen_parameters
from samplesplit_nb.tangents import ModuleTangent

# %% activation
@dataclass(frozen=True)
class SoftCurvatureReLU:
    "ReLU with its own slope; from the second derivative on it has those of softplus"
    sharpness:float|Tensor # b of softplus(b z)/b, in 1 / units of the pre-activation
    def __post_init__(self):
        if not torch.is_tensor(self.sharpness): require_number(
            'sharpness', self.sharpness, 'positive and finite', 'use 10 to 100')
    def __call__(self, z:Tensor)->Tensor: # same shape as z
        "relu(z)"
        soft = F.softplus(self.sharpness*z, threshold=40)/self.sharpness
        wrong = (self.slope(z) - torch.sigmoid(self.sharpness*z)).detach()
        return torch.relu(z).detach() + (soft - soft.detach()) + (z - z.detach())*wrong
    def slope(self, z:Tensor)->Tensor: # same shape as z, 0 or 1
        "relu'(z), whose derivative is that of the sigmoid"
        soft = torch.sigmoid(self.sharpness*z)
        return (z > 0).to(z.dtype).detach() + (soft - soft.detach())

# %% losses
class Loss(NamedTuple):
    "A loss of one sample, from the outputs z (k, outputs) and the labels (k,)"
    value:Callable # -> (k,)
    slope:Callable # -> (k, outputs), its derivative in z

def _own(z, y): return F.one_hot(y, z.shape[1]).to(z)

# those of `train_gd`
LOSSES = {
    'logistic': Loss(lambda z, y: F.softplus(-y*z[:, 0], threshold=40),
                     lambda z, y: (-y*torch.sigmoid(-y*z[:, 0]))[:, None]),
    'cross-entropy': Loss(lambda z, y: F.cross_entropy(z, y, reduction='none'),
                          lambda z, y: z.softmax(1) - _own(z, y)),
    'mse': Loss(lambda z, y: (z[:, 0] - y).square()/2, lambda z, y: z - y[:, None])}

# %% recipe
@dataclass(frozen=True)
class TrainingRecipe:
    "How the network was trained; ValueError for impossible values"
    lr:float # learning rate
    steps:int # updates of the weights
    loss:str='logistic' # 'logistic', 'cross-entropy' or 'mse', the mean over a batch
    batches:int=1 # in one epoch, equal in size, in an order that nobody knows; 1: full batch
    momentum:float=0. # of SGD
    weight_decay:float=0. # c: c theta is added to the gradient
    optimizer:str='sgd' # 'sgd' or 'adam' (torch's, with its usual constants)
    def __post_init__(self):
        require_number('lr', self.lr, 'positive and finite', 'as in training')
        require_count('steps', self.steps, 1, 'count the updates of the weights')
        require(self.loss in LOSSES, 'loss', repr(self.loss), f'one of {tuple(LOSSES)}',
                'the one it was trained with')
        require_count('batches', self.batches, 1, '1 is full-batch training')
        require_number('momentum', self.momentum, 'in [0, 1)', 'use 0')
        require_number('weight_decay', self.weight_decay, 'at least 0 and finite', 'use 0')
        require(self.optimizer in ('sgd', 'adam'), 'optimizer', repr(self.optimizer),
                "'sgd' or 'adam'", 'the one it was trained with')
    @property
    def smooth(self)->bool:
        "Is it gradient descent, so that short steps can be joined to long ones?"
        return self.batches == 1 and self.momentum == 0 and self.optimizer == 'sgd'

@dataclass(frozen=True)
class Fineness:
    "How finely a training is simulated; ValueError for impossible values"
    tolerance:float=.05 # error of one step, in units of |theta - theta_0|; 0: the real steps
    most:int=60 # simulated steps; the simulation ends there, early
    seed:int=0 # of the order of the batches
    def __post_init__(self):
        require_number('tolerance', self.tolerance, 'at least 0 and finite', 'use 0.05')
        require_count('most', self.most, 1, 'use 60')
        require_seed('seed', self.seed)

# %% weighted loss
class WeightedLoss:
    "sum_i w_i l(Phi(theta; x_i), y_i), for any theta, and its derivatives"
    def __init__(self,
        tangent:ModuleTangent, # of the network; its own weights are not used
        loss:str, # a key of `LOSSES`
        chunk_size:int|None=None): # samples at a time; None: all
        self.tangent, self.loss, self.chunk_size = tangent, LOSSES[loss], chunk_size
    def outputs(self, theta:list, x:Tensor)->Tensor: # (k, outputs)
        "Phi(theta; x)"
        t = self.tangent
        return functional_call(t.module, dict(zip(t.params, theta)),
                               (x.view(len(x), *t.shape),))
    def _chunks(self, *tensors):
        return zip(*(t.split(self.chunk_size or len(t)) for t in tensors))
    def graph(self, theta:list, x:Tensor, y:Tensor, w:Tensor)->list: # like theta
        "The gradient in theta, itself differentiable; theta requires a gradient"
        value = (w*self.loss.value(self.outputs(theta, x), y)).sum()
        return torch.autograd.grad(value, theta, create_graph=True, materialize_grads=True)
    def gradient(self, theta:list, x:Tensor, y:Tensor, w:Tensor)->list: # like theta
        "The same without a graph, `chunk_size` samples at a time"
        total:Any = None
        for part in self._chunks(x, y, w):
            g = self._plain(theta, *part)
            total = list(g) if total is None else _add(total, g)
        return total
    def _plain(self, theta, x, y, w):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in theta]
            value = (w*self.loss.value(self.outputs(leaves, x), y)).sum()
            return torch.autograd.grad(value, leaves, materialize_grads=True)
    def along(self, theta:list, v:list, x:Tensor, y:Tensor)->Tensor: # (k,)
        "<v, grad_theta l(x_i)> for each i, differentiable in x"
        with torch.enable_grad():
            ones = x.new_ones(len(x)).requires_grad_()
            g = self.graph([t.detach().requires_grad_() for t in theta], x, y, ones)
            return torch.autograd.grad(g, ones, v, create_graph=True)[0]

class PerceptronLoss(WeightedLoss):
    "The same for an `MLP`, in closed form"
    def _layers(self, theta):
        parts = iter(theta)
        return [(next(parts), None if layer.bias is None else next(parts))
                for layer in self.tangent.module.layers]
    def graph(self, theta:list, x:Tensor, y:Tensor, w:Tensor)->list:
        act, layers = self.tangent.module.activation, self._layers(theta)
        inputs, slopes = [x], []
        for W, b in layers[:-1]:
            z = F.linear(inputs[-1], W, b)
            inputs.append(act(z)); slopes.append(act.slope(z))
        delta = w[:, None]*self.loss.slope(F.linear(inputs[-1], *layers[-1]), y)
        found:list = []
        for l in reversed(range(len(layers))):
            W, b = layers[l]
            if b is not None: found.append(delta.sum(0))
            found.append(delta.T @ inputs[l])
            if l: delta = (delta @ W)*slopes[l-1]
        return found[::-1]
    def _plain(self, theta, x, y, w):
        with torch.no_grad(): return self.graph(theta, x, y, w)

def weighted_loss(
    tangent:ModuleTangent, loss:str, chunk_size:int|None=None # see `WeightedLoss`
)->WeightedLoss:
    "In closed form where the network is an `MLP` that was trained whole"
    whole = isinstance(tangent.module, MLP) and not frozen_parameters(tangent.module)
    kind = PerceptronLoss if whole else WeightedLoss
    return kind(tangent, loss, chunk_size)

# %% pull
class Pulled(NamedTuple):
    "The derivatives of sum_i w_i <v, grad_theta l(x_i)>"
    theta:list # in theta
    x:Tensor # (k, d)
    w:Tensor # (k,)

def pull(
    loss:WeightedLoss, theta:list, v:list, # both like the parameters
    x:Tensor, y:Tensor, w:Tensor # (k, d), (k,) and (k,)
)->Pulled:
    "One gradient, and the way back through it"
    total, xs, ws = None, [], []
    for px, py, pw in loss._chunks(x, y, w):
        with torch.enable_grad():
            px, pw = px.detach().requires_grad_(), pw.detach().requires_grad_()
            leaves = [t.detach().requires_grad_() for t in theta]
            g = loss.graph(leaves, px, py, pw)
            *back, gx, gw = torch.autograd.grad(g, [*leaves, px, pw], v, materialize_grads=True)
        total = back if total is None else _add(total, back)
        xs.append(gx); ws.append(gw)
    return Pulled(total, torch.cat(xs), torch.cat(ws))

# %% updates
def _start(recipe, theta):
    "What the optimiser remembers, before the first update"
    zeros = [torch.zeros_like(t) for t in theta]
    if recipe.optimizer == 'adam': return [*zeros, *(torch.zeros_like(t) for t in theta)]
    return zeros if recipe.momentum else []

def _adam(theta, g, memory, number, lr):
    m, v = memory[:len(theta)], memory[len(theta):]
    m = [.9*a + .1*b for a, b in zip(m, g)]
    v = [.999*a + .001*b.square() for a, b in zip(v, g)]
    # 1e-30: the root has no derivative at 0
    size = [(a/(1 - .999**number) + 1e-30).sqrt() + 1e-8 for a in v]
    step = [a/(1 - .9**number)/s for a, s in zip(m, size)]
    return [t - lr*s for t, s in zip(theta, step)], [*m, *v]

def update(
    recipe:TrainingRecipe, theta:list, g:list, # like the parameters; g without weight decay
    memory:list, # of the optimiser
    number:int # of this update, from 1
)->tuple: # (theta, memory) after it
    "One update of the weights, as torch's optimisers have it; differentiable"
    if recipe.weight_decay: g = [a + recipe.weight_decay*t for a, t in zip(g, theta)]
    if recipe.optimizer == 'adam': return _adam(theta, g, memory, number, recipe.lr)
    if recipe.momentum: memory = g = [recipe.momentum*m + a for m, a in zip(memory, g)]
    return [t - recipe.lr*a for t, a in zip(theta, g)], memory

# %% batches
def batch_numbers(
    slots:Tensor, # (k,) places in the data set; the two of a split share one
    epoch:int, batches:int, seed:int
)->Tensor: # (k,) 0 ... batches - 1
    "The batch of each sample in that epoch: a random order, cut into equal parts"
    count = int(slots.max()) + 1
    order = torch.randperm(count, generator=seeded(1000003*seed + epoch)).to(slots.device)
    return order[slots]*batches//count

# %% step
class Step(NamedTuple):
    "One simulated step, and what its derivative needs"
    kind:str # 'real' (an update of the optimiser) or 'long' (Heun's, of gradient descent)
    length:float # time: learning rate x updates
    places:list # of theta where a gradient was taken: one, or two for a long step
    memory:list # of the optimiser, before it
    share:Any # (k,) factor of the weights, 0 outside the batch; None: full batch

class Path(NamedTuple):
    "A simulated training"
    steps:list # of `Step`
    end:list # theta, like the parameters
    time:float # learning rate x updates that it stands for
    gradients:int # evaluations of the gradient, those of refused steps included

# %% simulate
def _size(a, b): # |a - b|
    return math.sqrt(sum((p - q).square().sum().item() for p, q in zip(a, b)))

class Simulator:
    "Trains on weighted samples; its answer can be differentiated"
    def __init__(self,
        loss:WeightedLoss,
        start:list, # theta_0
        scale:float, # |theta - theta_0| of the real training, the unit of the tolerance
        recipe:TrainingRecipe,
        fineness:Fineness=Fineness()):
        "ValueError where a training needs more steps than are allowed"
        self.loss, self.start, self.scale = loss, start, scale
        self.recipe, self.fineness = recipe, fineness
        self.joined = recipe.smooth and fineness.tolerance > 0
        require(self.joined or recipe.steps <= fineness.most, 'most', fineness.most,
                f'at least {recipe.steps}, the steps of the training',
                'steps can be joined only for full-batch gradient descent')
    def _gradient(self, theta, samples, w):
        g = self.loss.gradient(theta, *samples, w)
        return g if not self.recipe.weight_decay or not self.joined else [
            a + self.recipe.weight_decay*t for a, t in zip(g, theta)]
    def __call__(self, x:Tensor, y:Tensor, w:Tensor, # (k, d), (k,) and (k,)
                 slots:Tensor|None=None # (k,), for batches; None: each sample its own
    )->Path:
        "Simulate the training on these samples"
        if self.joined: return self._long(x, y, w)
        return self._real(x, y, w, torch.arange(len(x)) if slots is None else slots)
    def _real(self, x, y, w, slots):
        r, theta, steps = self.recipe, self.start, []
        memory = _start(r, theta)
        for n in range(r.steps):
            share = None
            if r.batches > 1:
                epoch, part = divmod(n, r.batches)
                numbers = batch_numbers(slots, epoch, r.batches, self.fineness.seed)
                share = (numbers == part).to(w)*r.batches
            g = self.loss.gradient(theta, x, y, w if share is None else w*share)
            steps.append(Step('real', r.lr, [theta], memory, share))
            theta, memory = update(r, theta, g, memory, n + 1)
        return Path(steps, theta, r.lr*r.steps, r.steps)
    def _long(self, x, y, w):
        r, how = self.recipe, self.fineness
        theta, t, end, h, steps = self.start, 0., r.lr*r.steps, r.lr, []
        g, count = self._gradient(theta, (x, y), w), 1
        while t < end*(1 - 1e-9) and len(steps) < how.most:
            h = min(max(h, r.lr), end - t)
            ahead = [p - h*a for p, a in zip(theta, g)]
            g_ahead = self._gradient(ahead, (x, y), w)
            count += 1
            error = h/2*_size(g, g_ahead)/self.scale
            if not math.isfinite(error): error = math.inf
            real = h <= r.lr*(1 + 1e-9)
            if real: steps.append(Step('real', h, [theta], [], None)); theta, g = ahead, g_ahead
            elif error <= how.tolerance:
                steps.append(Step('long', h, [theta, ahead], [], None))
                theta = [p - h/2*(a + b) for p, a, b in zip(theta, g, g_ahead)]
                g = self._gradient(theta, (x, y), w)
                count += 1
            if real or error <= how.tolerance: t += h
            h *= min(4., max(.2, .9*math.sqrt(how.tolerance/max(error, 1e-30))))
        return Path(steps, theta, t, count)

# %% adjoint
class Taken(NamedTuple):
    "A gradient that the training took, and how the end depends on it"
    theta:list # where
    slope:list # derivative of the end's function in this gradient, like the parameters
    share:Any # (k,) factor of the weights; None: 1

class Adjoint(NamedTuple):
    "The derivatives of a function of the end"
    x:Tensor # (k, d)
    w:Tensor # (k,)
    taken:list # of `Taken`: how the end depends on any further sample

def _add(a, b): return [p + q for p, q in zip(a, b)]

def _scaled(a, factor): return [factor*p for p in a]

class Differentiated(Simulator):
    "And goes back through the path, a step at a time: memory for the states alone"
    def _pulled(self, theta, slope, share, samples, w, taken, totals):
        taken.append(Taken(theta, slope, share))
        p = pull(self.loss, theta, slope, *samples, w if share is None else w*share)
        totals[0] += p.x
        totals[1] += p.w if share is None else p.w*share
        return p.theta
    def _back_long(self, step, a, go):
        (theta, ahead), h, c = step.places, step.length, self.recipe.weight_decay
        second = _scaled(a, -h/2)
        at_ahead = _add(go(ahead, second, None), _scaled(second, c))
        first = _add(second, _scaled(at_ahead, -h))
        return _add(_add(a, at_ahead), _add(go(theta, first, None), _scaled(first, c)))
    def _back_real(self, step, number, a, a_memory, go, w, samples):
        if self.joined: # plain gradient descent; the step before the end may be shorter
            c, slope = self.recipe.weight_decay, _scaled(a, -step.length)
            return _add(a, _add(go(step.places[0], slope, None), _scaled(slope, c))), a_memory
        theta, n = step.places[0], len(a)
        g = self.loss.gradient(theta, *samples, w if step.share is None else w*step.share)
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (*theta, *g, *step.memory)]
            end, memory = update(self.recipe, leaves[:n], leaves[n:2*n], leaves[2*n:], number)
            back = torch.autograd.grad([*end, *memory], leaves, [*a, *a_memory],
                                       materialize_grads=True)
        return (_add(back[:n], go(theta, list(back[n:2*n]), step.share)), list(back[2*n:]))
    def adjoint(self,
        path:Path, slope:list, # derivative of the function in the end, like the parameters
        x:Tensor, y:Tensor, w:Tensor # as simulated
    )->Adjoint:
        "The derivatives in x and w of a function of the end of the path"
        taken:list = []
        totals = [torch.zeros_like(x), torch.zeros_like(w)]
        go = lambda theta, v, share: self._pulled(theta, v, share, (x, y), w, taken, totals)
        a, memory = list(slope), _start(self.recipe, slope)
        for number in range(len(path.steps), 0, -1):
            step = path.steps[number - 1]
            if step.kind == 'long': a = self._back_long(step, a, go)
            else: a, memory = self._back_real(step, number, a, memory, go, w, (x, y))
        return Adjoint(*totals, taken)
