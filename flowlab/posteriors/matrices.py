"""Bijectors that torch lacks: from vectors to Cholesky factors, and from these to positive definite matrices."""

import math

import torch
from torch import Size, Tensor
from torch.distributions import ComposeTransform, Transform, biject_to, constraints


def bijector(constraint: constraints.Constraint) -> Transform:
    """The bijector from unconstrained numbers to a support.

    Raises:
        NotImplementedError: There is none.
    """
    if constraint is constraints.lower_cholesky:
        return VectorToCholesky()
    if constraint is constraints.positive_definite:
        return ComposeTransform([VectorToCholesky(), CholeskyToCovariance()])
    return biject_to(constraint)


class VectorToCholesky(Transform):
    """Vectors (*, d (d + 1) / 2) to lower triangular matrices (*, d, d) by rows; the diagonal is exponentiated.

    Example:
        >>> x = torch.tensor([0.0, 3.0, 1.0])
        >>> VectorToCholesky()(x)
        tensor([[1.0000, 0.0000],
                [3.0000, 2.7183]])
    """

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorToCholesky)

    def _call(self, x: Tensor) -> Tensor:
        d = _size(x.shape[-1])
        row, column = torch.tril_indices(d, d, device=x.device)
        lower = x.new_zeros(*x.shape[:-1], d, d)
        lower[..., row, column] = torch.where(row == column, x.exp(), x)
        return lower

    def _inverse(self, y: Tensor) -> Tensor:
        row, column = torch.tril_indices(*y.shape[-2:], device=y.device)
        entries = y[..., row, column]
        return torch.where(row == column, torch.where(row == column, entries, 1).log(), entries)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward_shape(self, shape: Size) -> Size:
        d = _size(shape[-1])
        return Size([*shape[:-1], d, d])

    def inverse_shape(self, shape: Size) -> Size:
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError("its shape must end in two equal sizes")
        d = shape[-1]
        return Size([*shape[:-2], d * (d + 1) // 2])


class CholeskyToCovariance(Transform):
    """L to L Lᵀ, with densities over the entries on and below the diagonals.

    The log-determinant: Muirhead 1982, "Aspects of multivariate statistical theory", theorem 2.1.9.
    """

    domain = constraints.lower_cholesky
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CholeskyToCovariance)

    def _call(self, x: Tensor) -> Tensor:
        return x @ x.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.cholesky_ex(y).L

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        d = x.shape[-1]
        powers = torch.arange(d, 0, -1, dtype=x.dtype, device=x.device)
        return d * math.log(2) + (powers * x.diagonal(dim1=-2, dim2=-1).log()).sum(-1)


def _size(length: int) -> int:
    return (math.isqrt(8 * length + 1) - 1) // 2
