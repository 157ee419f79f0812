"Checkpoints from elsewhere: read without running anything, turned into the network that they were"

import io, os, pickle, re, zipfile
import pytest, torch
from torch import nn
from torch.testing import assert_close
from samplesplit_nb.networks import MLP, mlp_from_weights
from samplesplit_nb.weights import (
    input_shape,
    load_network,
    load_weights,
    pictures_to_rows,
    rows_to_pictures,
    save_weights,
)


class Published(nn.Module):
    "A perceptron as in the published code: biases in the first layer only, names layers.N"

    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(a, b, bias=not i) for i, (a, b) in enumerate(zip(widths, widths[1:]))]
        )

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: {'batch': None, 'epoch': 7, 'state_dict': s},
        lambda s: {'model': {'module.' + k: v for k, v in s.items()}},
    ],
    ids=['bare', 'published', 'parallel'],
)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_published_checkpoint_is_the_same_function(tmp_path, wrap, zipped):
    torch.manual_seed(0)
    net, x = Published(30, 20, 20, 1).double(), torch.randn(50, 30, dtype=torch.float64)
    torch.save(wrap(net.state_dict()), tmp_path / 'weights.pth', _use_new_zipfile_serialization=zipped)
    model = mlp_from_weights(load_weights(tmp_path / 'weights.pth'))
    assert (model.widths, model.bias) == ([30, 20, 20, 1], 'first')
    with torch.no_grad():
        assert_close(model(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_survive_a_round_trip(tmp_path, dtype):
    net = MLP([6, 5, 2], bias='none', seed=2, dtype=dtype)
    save_weights(tmp_path / 'w.safetensors', net)
    back = mlp_from_weights(load_weights(tmp_path / 'w.safetensors'))
    assert all(
        torch.equal(p, q) and q.dtype == dtype
        for p, q in zip(net.parameters(), back.parameters(), strict=True)
    )


def hostile(path):
    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {path}',)

    return Evil()


def zip_with(pickled):
    "A torch archive whose data.pkl is this"
    good, evil = io.BytesIO(), io.BytesIO()
    torch.save({'w': torch.zeros(2)}, good)
    with zipfile.ZipFile(good) as a, zipfile.ZipFile(evil, 'w') as b:
        for name in a.namelist():
            b.writestr(name, pickled if name.endswith('data.pkl') else a.read(name))
    return evil.getvalue()


@pytest.mark.parametrize('suffix', ['.pt', '.pth', '.safetensors', '.bin', ''])
@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'bare'])
def test_a_hostile_pickle_runs_nothing(tmp_path, suffix, protocol, zipped):
    mark = tmp_path / 'owned'
    data = pickle.dumps({'w': hostile(mark)}, protocol)
    (tmp_path / f'evil{suffix}').write_bytes(zip_with(data) if zipped else data)
    with pytest.raises(ValueError, match='must be a checkpoint'):
        load_weights(tmp_path / f'evil{suffix}')
    assert not mark.exists()
    pickle.loads(data)  # negative control: it would have
    assert mark.exists()


def test_a_whole_module_is_refused_with_the_remedy(tmp_path):
    torch.save(nn.Linear(2, 1), tmp_path / 'whole.pt')
    with pytest.raises(ValueError, match=r'wants to run torch\.nn.*torch\.save\(model\.state_dict'):
        load_weights(tmp_path / 'whole.pt')


def test_an_old_torch_reads_safetensors_only(tmp_path, monkeypatch):
    net = MLP([3, 1])
    torch.save(net.state_dict(), tmp_path / 'w.pt')
    save_weights(tmp_path / 'w.safetensors', net)
    monkeypatch.setattr(torch, '__version__', '2.9.1')
    assert set(load_weights(tmp_path / 'w.safetensors')) == set(net.state_dict())
    with pytest.raises(ValueError, match=r'torch=2\.9\.1.*safetensors'):
        load_weights(tmp_path / 'w.pt')


@pytest.mark.parametrize('cut', [1, 100, -30])
def test_half_a_file_is_no_checkpoint(tmp_path, cut):
    net = MLP([30, 20, 1])
    torch.save(net.state_dict(), tmp_path / 'w.pth')
    save_weights(tmp_path / 'w.safetensors', net)
    for name in ('w.pth', 'w.safetensors'):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:cut])
        with pytest.raises(ValueError, match='must be a checkpoint'):
            load_weights(tmp_path / name)


def test_a_failed_save_leaves_the_good_file(tmp_path, monkeypatch):
    save_weights(tmp_path / 'w.safetensors', MLP([3, 1], seed=1))

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError):
        save_weights(tmp_path / 'w.safetensors', MLP([3, 1], seed=2))
    assert torch.equal(
        load_weights(tmp_path / 'w.safetensors')['layers.0.weight'], MLP([3, 1], seed=1).layers[0].weight
    )
    assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors']


def test_layers_in_the_order_of_their_numbers():
    "safetensors sorts names as text: layers.10 before layers.2"
    net = MLP([4] * 13 + [1], init='pytorch', seed=3)
    shuffled = dict(sorted(net.state_dict().items()))
    assert list(shuffled)[2].startswith('layers.1.') and list(shuffled)[4].startswith('layers.10.')
    assert all(
        torch.equal(p, q)
        for p, q in zip(mlp_from_weights(shuffled).parameters(), net.parameters(), strict=True)
    )


# the network around the weights


def dashed(message):
    "What the command line makes of a message: its two dashes before every argument"
    name = message.partition('=')[0]  # the argument at fault
    return re.sub(r'`(\w+)`', r'--\1', f'--{message}'.replace(f': {name} must', f': --{name} must', 1))


@pytest.mark.parametrize(
    'call, says',
    [
        (lambda w: load_network(w, 'mymodels'), '--module=mymodels: --module must be a module and a func'),
        (lambda w: load_network(w, 'mymodels'), 'for example --module mymodels:make_net'),
        (lambda w: load_network(w, 'math:pi'), '--module must be a function that returns an nn.Module; it'),
        (lambda w: load_network(w, lambda: nn.Linear(6, 5)), 'check --module and the file'),
        (lambda w: input_shape(load_network(w), (7, 1)), '--shape=(7, 1): --shape must be of 6 numbers'),
        (lambda w: input_shape(load_network(w), (0, 6)), 'for example --shape 28 28'),
        (lambda w: input_shape(nn.Linear(6, 5)), '--shape=None: --shape must be given with --module'),
        (lambda w: input_shape(nn.Linear(6, 5), (7,)), '--shape=(7,): --shape must be what the module takes'),
    ],
)
def test_messages_can_be_put_in_the_words_of_the_command_line(tmp_path, call, says):
    save_weights(tmp_path / 'w.safetensors', MLP([6, 5, 2]))
    with pytest.raises(ValueError) as e:
        call(tmp_path / 'w.safetensors')
    assert says in dashed(str(e.value)) and '\n' not in str(e.value)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_a_network_of_ones_own_takes_the_dtype_of_its_weights_and_no_half(tmp_path, dtype):
    save_weights(tmp_path / 'w.safetensors', Published(6, 5, 1).to(dtype))
    inferred, own = (load_network(tmp_path / 'w.safetensors', m) for m in (None, lambda: Published(6, 5, 1)))
    wide = torch.float32 if dtype == torch.float16 else dtype
    x = torch.randn(4, 6, dtype=wide)
    assert_close(inferred(x), own(x), rtol=0, atol=0)
    assert not own.training and not any(p.requires_grad for p in own.parameters())


@pytest.mark.parametrize(
    'shape', [(3, 4, 5), (4, 5, 3), (1, 4, 5), (4, 5, 1), (4, 5), (20,), (2, 4, 5), None]
)
def test_pictures_and_back(shape):
    x = torch.arange(3.0 * 60).view(3, -1)[:, : torch.Size(shape or (20,)).numel()]
    rows, drawn = rows_to_pictures(x, shape)
    assert torch.equal(pictures_to_rows(rows, shape), x)
    assert drawn is None or torch.Size(drawn).numel() == x.shape[1]
