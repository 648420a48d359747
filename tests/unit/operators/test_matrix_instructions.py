"""What the matrix instructions promise beyond their contract: identities, signs, gradients, an answer for any."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gos_adapt.instructions import INSTRUCTIONS

RNG = np.random.default_rng(0)
TALL, WIDE, SQUARE = (RNG.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3, 5), (4, 4)))
every_shape = pytest.mark.parametrize("w", [TALL, WIDE, SQUARE], ids=["tall", "wide", "square"])


def applied(name, w, **hyper):
    return INSTRUCTIONS[name].numpy(w, **hyper)


def svd(w, rank=None):
    return [applied("svd", w, factor=factor, rank=rank or min(w.shape)) for factor in range(3)]


def eigen(w):
    return [applied("eigen", w, factor=factor, rank=len(w)) for factor in range(2)]


def qr(w):
    return [applied("qr", w, factor=factor) for factor in range(2)]


def assert_close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=1e-5)


# Identities


@every_shape
def test_factors_multiply_to_the_matrix_and_are_orthogonal(w):
    u, s, vt = svd(w)
    assert_close(u @ np.diag(s) @ vt, w)
    assert_close(u.T @ u, np.eye(len(s)))
    assert_close(vt @ vt.T, np.eye(len(s)))
    q, r = qr(w)
    assert_close(q @ r, w)
    assert_close(q.T @ q, np.eye(q.shape[1]))
    assert_close(np.tril(r, -1), np.zeros_like(r))


def test_a_truncated_decomposition_loses_what_the_left_out_singular_values_say():
    u, s, vt = svd(TALL, rank=2)
    assert_close(np.linalg.norm(TALL - u @ np.diag(s) @ vt), svd(TALL)[1][2])


def test_eigenvalues_are_those_of_the_symmetric_part_the_largest_first():
    vectors, values = eigen(SQUARE)
    assert_close(vectors @ np.diag(values) @ vectors.T, (SQUARE + SQUARE.T) / 2)
    assert list(values) == sorted(values, reverse=True)


@every_shape
def test_cholesky_factor_is_that_of_the_gram_matrix_with_its_ridge(w):
    factor = applied("cholesky", w, ridge=0.01)
    gram = w @ w.T
    assert_close(factor @ factor.T, gram + 0.01 * np.mean(gram.diagonal()) * np.eye(len(w)))
    assert_close(np.triu(factor, 1), np.zeros_like(factor))


def test_inverses_invert():
    well_conditioned = SQUARE + 4 * np.eye(4, dtype=np.float32)
    assert_close(applied("inverse", well_conditioned, ridge=1e-8) @ well_conditioned, np.eye(4))
    assert_close(applied("pseudo_inverse", TALL) @ TALL, np.eye(3))
    assert_close(WIDE @ applied("pseudo_inverse", WIDE), np.eye(3))


def test_numbers_of_a_matrix_by_hand():
    w = np.array([[2, -1], [0, 3]], np.float32)
    assert applied("determinant", w) == pytest.approx(6)
    assert applied("trace", w) == 5
    assert applied("rank", w) == 2
    assert applied("rank", np.outer(TALL[0], TALL[1])) == 1
    assert applied("matrix_norm", w, order=1) == 4
    assert applied("matrix_norm", w, order=2) == pytest.approx(np.sqrt(7 + np.sqrt(13)))
    assert applied("weight_frobenius_norm", w) == pytest.approx(np.sqrt(14))
    assert applied("weight_vector_norm", np.array([3, -4], np.float32), order=1) == 7
    assert applied("weight_vector_norm", np.array([3, -4], np.float32), order=2) == 5


# Signs


@every_shape
def test_signs_do_not_depend_on_those_of_the_matrix(w):
    for of_one, of_other in zip((svd(w)[0], qr(w)[1]), (svd(-w)[0], qr(-w)[1]), strict=True):
        assert_close(of_one, of_other)
    assert (qr(w)[1].diagonal() >= 0).all()


def test_the_leading_entry_is_positive_and_the_first_of_equals():
    assert_close(svd(np.array([[-1, 1], [1, -1]], np.float32))[0][:, 0], [np.sqrt(0.5), -np.sqrt(0.5)])
    vectors, _ = eigen(np.array([[0, -1], [-1, 0]], np.float32))
    assert_close(vectors, np.sqrt(0.5) * np.array([[1, 1], [-1, 1]]))


# Any matrix

ONE_MATRIX = {
    **{f"svd {factor}": ("svd", {"factor": factor, "rank": 3}) for factor in range(3)},
    **{f"eigen {factor}": ("eigen", {"factor": factor, "rank": 3}) for factor in range(2)},
    **{f"qr {factor}": ("qr", {"factor": factor}) for factor in range(2)},
    "cholesky": ("cholesky", {"ridge": 1e-4}),
    "inverse": ("inverse", {"ridge": 1e-4}),
    "pseudo_inverse": ("pseudo_inverse", {}),
    "determinant": ("determinant", {}),
    "rank": ("rank", {}),
    "norm 1": ("matrix_norm", {"order": 1}),
    "norm 2": ("matrix_norm", {"order": 2}),
    "frobenius": ("weight_frobenius_norm", {}),
}
every_function = pytest.mark.parametrize(("name", "hyper"), ONE_MATRIX.values(), ids=ONE_MATRIX)
AWKWARD = {
    "zeros": np.zeros((3, 3)),
    "ones": np.ones((3, 3)),
    "identity": np.eye(3),
    "equal singular values": np.linalg.qr(RNG.normal(size=(3, 3)))[0],
    "rank two": RNG.normal(size=(3, 2)) @ RNG.normal(size=(2, 3)),
    "ill-conditioned": 1 / (1 + np.add.outer(np.arange(3), np.arange(3))) ** 4,
    "nilpotent": np.diag([1.0, 1.0], k=1),
    "tiny": 1e-15 * RNG.normal(size=(3, 3)),
    "huge": 1e11 * RNG.normal(size=(3, 3)),
}


@every_function
@pytest.mark.parametrize("w", AWKWARD.values(), ids=AWKWARD)
def test_singular_matrices_have_finite_results_and_gradients_and_torch_agrees(name, hyper, w):
    w = w.astype(np.float32)
    meaning = applied(name, w, **hyper)
    assert np.isfinite(meaning).all()
    leaf = torch.tensor(w, requires_grad=True)
    result = INSTRUCTIONS[name].torch(leaf, **hyper)
    scale = max(1.0, float(np.abs(meaning).max()))
    np.testing.assert_allclose(result.detach().numpy(), meaning, rtol=1e-5, atol=1e-6 * scale)
    if result.requires_grad:
        (result * torch.arange(1.0, 1 + result.numel()).reshape(result.shape)).sum().backward()
        assert torch.isfinite(leaf.grad).all()


@every_function
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_gives_nan_and_no_error(name, hyper, bad):
    w = SQUARE[:3, :3].copy()
    w[1, 1] = bad
    meaning = applied(name, w, **hyper)
    assert np.isnan(meaning).all()
    in_torch = INSTRUCTIONS[name].torch(torch.from_numpy(w), **hyper)
    assert in_torch.shape == meaning.shape
    assert torch.isnan(in_torch).all()


def test_what_leaves_float32_is_infinite_without_a_warning():
    assert applied("determinant", np.diag([1e30, 1e30]).astype(np.float32)) == np.inf
    assert applied("determinant", np.diag([1e30] * 20).astype(np.float32)) == np.inf  # and float64


# Gradients


@pytest.mark.parametrize(
    ("name", "hyper", "shape"),
    [
        (name, hyper, shape)
        for name, hyper in ONE_MATRIX.values()
        for shape in ((3, 3), (5, 3), (3, 5))
        if name != "rank" and isinstance(INSTRUCTIONS[name].infer((shape,), hyper), tuple)
    ],
)
def test_gradients_are_those_of_finite_differences(name, hyper, shape):
    w = torch.tensor(np.random.default_rng(1).normal(size=shape), requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: INSTRUCTIONS[name].torch(w, **hyper), w)


def test_a_rank_has_no_gradient():
    assert not INSTRUCTIONS["rank"].torch(torch.ones(2, 2, requires_grad=True)).requires_grad


def test_a_singular_matrix_has_its_cofactors_as_the_gradient_of_its_determinant():
    w = torch.ones(2, 2, requires_grad=True)
    INSTRUCTIONS["determinant"].torch(w).sum().backward()
    assert_close(w.grad, [[1, -1], [-1, 1]])


def test_the_gradient_of_the_product_of_the_factors_is_that_of_the_matrix():
    wanted = torch.arange(16.0).reshape(4, 4)
    assert_close(_gradient_through_svd(torch.from_numpy(SQUARE), wanted), wanted, atol=1e-3)


def test_where_singular_values_are_equal_their_own_gradient_is_what_is_left():
    wanted = torch.arange(9.0).reshape(3, 3)
    assert_close(_gradient_through_svd(torch.eye(3), wanted), torch.diag(torch.diagonal(wanted)))


def _gradient_through_svd(matrix, wanted):
    w = matrix.clone().requires_grad_()
    u, s, vt = (INSTRUCTIONS["svd"].torch(w, factor=factor, rank=len(w)) for factor in range(3))
    (u @ torch.diag(s) @ vt * wanted).sum().backward()
    return w.grad
