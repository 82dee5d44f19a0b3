"""Arrays of other libraries: what goes in comes out, of the same kind."""

import numpy as np
import pytest

import fastconv

RNG = np.random.default_rng(5)


class OnlyDLPack:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_whatever_has_dlpack_is_read():
    x, w = RNG.standard_normal((2, 3, 8)), RNG.standard_normal((4, 3, 3))
    expected = fastconv.conv1d(x, w)
    np.testing.assert_array_equal(fastconv.conv1d(OnlyDLPack(x), OnlyDLPack(w)), expected)


def test_subclasses_and_maps_of_files_are_plain_arrays(tmp_path):
    x, w = RNG.standard_normal((1, 5, 6)), RNG.standard_normal((2, 1, 3, 3))
    expected = fastconv.conv2d(x, w)
    on_disk = np.memmap(tmp_path / "x", float, "w+", shape=x.shape)
    on_disk[:] = x
    result = fastconv.conv2d(on_disk, w)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, expected)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64", "int8"])
def test_tensors_give_tensors(torch, dtype):
    x, w = torch.randint(-4, 5, (2, 3, 9)).to(getattr(torch, dtype)), torch.ones(4, 3, 3).to(getattr(torch, dtype))
    result = fastconv.conv1d(x, w, bias=torch.arange(4).to(w.dtype), stride=2)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == (torch.int32 if dtype == "int8" else x.dtype)
    wide = torch.complex128 if dtype == "complex64" else torch.float64
    expected = torch.nn.functional.conv1d(x.to(wide), w.to(wide), torch.arange(4).to(wide), stride=2)
    assert torch.equal(result.to(wide), expected)
    layer = fastconv.Conv1d(w, bias=torch.arange(4).to(w.dtype), stride=2)
    assert torch.equal(layer(x), result)


def test_tensors_of_any_strides_and_lazy_conjugates(torch):
    x = torch.randn(2, 9, 8, 3).permute(0, 3, 1, 2)
    w = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    # Of one algorithm, whose sums have one order: a tensor with channels last is computed as such.
    expected = fastconv.conv2d(x.contiguous().numpy(), w.contiguous().numpy(), algorithm="direct")
    np.testing.assert_array_equal(fastconv.conv2d(x, w, algorithm="direct").numpy(), expected)
    z = torch.randn(1, 1, 5, dtype=torch.complex64).conj()
    one = torch.ones(1, 1, 1, dtype=torch.complex64)
    assert torch.equal(fastconv.conv1d(z, one), z.resolve_conj())


def test_out_may_be_a_tensor(torch):
    x, w = torch.randn(1, 2, 6), torch.randn(3, 2, 2)
    out = torch.empty(1, 3, 5)
    assert fastconv.conv1d(x, w, out=out) is out
    assert torch.equal(out, fastconv.conv1d(x, w))
    with pytest.raises(ValueError, match="out shares memory with x"):
        fastconv.conv1d(x, torch.ones(2, 2, 1), out=x)
    z, one = torch.ones(1, 1, 3, dtype=torch.complex64), torch.ones(1, 1, 1, dtype=torch.complex64)
    with pytest.raises(TypeError, match="out is a lazily conjugated"):
        fastconv.conv1d(z, one, out=torch.zeros_like(z).conj())


def test_a_tensor_whose_gradient_would_be_lost_is_refused(torch):
    x, w = torch.randn(1, 2, 6), torch.randn(3, 2, 2, requires_grad=True)
    with pytest.raises(TypeError, match=r"w is a torch tensor that requires grad.*w\.detach\(\)"):
        fastconv.conv1d(x.numpy(), w)
    with torch.no_grad():
        assert fastconv.conv1d(x.numpy(), w).shape == (1, 3, 5)
    assert fastconv.conv1d(x.numpy(), w.detach()).shape == (1, 3, 5)


def test_tensors_that_hold_no_plain_memory_are_refused(torch):
    w = torch.ones(1, 1, 1)
    with pytest.raises(TypeError, match=r"x is a .* on meta: expected a dense one on cpu or cuda"):
        fastconv.conv1d(torch.ones(1, 1, 4, device="meta"), w)
    with pytest.raises(TypeError, match=r"x is a torch.sparse_coo tensor on cpu: expected a dense one"):
        fastconv.conv1d(torch.ones(1, 1, 4).to_sparse(), w)


def test_mixed_kinds_give_the_kind_of_x(torch):
    x, w = RNG.standard_normal((1, 2, 6), np.float32), torch.ones(3, 2, 2)
    assert type(fastconv.conv1d(x, w)) is np.ndarray
    assert isinstance(fastconv.conv1d(torch.from_numpy(x), w.numpy()), torch.Tensor)
