"""The mathematics of OSFT on plain tensors: which directions of a matrix are free, and projection of changes to them.

A matrix A (M x p, M >= p) with singular values s_1 >= ... >= s_p is split into the k = p - f largest ("protected") and the
f smallest ("free") directions: A = U_h S_h V_h^T + U_l S_l V_l^T (Nayak et al., arXiv 2504.07097). Training may add Delta with

    strict:  U_h^T Delta = 0 and Delta V_h = 0      exactly what a product of trained low factors can reach
    corner:  U_h^T Delta V_h = 0                    the paper's equation: only what is high on both sides is protected

Strict changes are Delta = Z Q^T, where Q = V_l (p x f) is fixed and Z (M x f) is trained with U_h^T Z = 0. Corner changes are
full matrices. A wide matrix is split as its transpose. Leading dimensions are a batch (a layer's experts).

The optimizer moves all its parameters by similar amounts, so the choice of coordinates matters. Factors U, S, V move a free
direction in proportion to its singular value. Coordinates of Q D do the same, with D as in `steps`.

`split` finds Q and U_h by one float64 `eigh` of the smaller Gram matrix. Directions whose singular value is below
`NEGLIGIBLE` of the largest have no left partner to protect; they are protected on the right side only.
"""

from dataclasses import dataclass

import torch

NEGLIGIBLE = 1e-6
"""Fraction of the largest singular value below which a singular value counts as zero."""

WELL_CONDITIONED = 1e-4
"""Fraction of the largest singular value down to which the Gram matrix gives left vectors that are orthogonal to 1e-8."""

MIN_STEP = 0.1
"""Minimum step of a free direction, as a fraction of the mean step, so that one of singular value zero can learn."""

NUM_REFINEMENTS = 4
"""Refinements after a projection by normal equations; each reduces the residual by four orders of magnitude or more."""


@dataclass
class Subspace:
    """The free and the protected directions of one matrix."""

    free: torch.Tensor | None
    """Q (..., p, f) with orthonormal columns. None: the full matrix is free."""

    protected: torch.Tensor | None
    """U_h (..., M, k) with orthonormal columns (zero where a singular value is negligible). None: no left side is protected."""

    scale: torch.Tensor | None = None
    """Singular values (..., f) of the free directions. None: the full matrix is free."""


def num_free(ratio: float, size: int) -> int:
    """Number of free directions: `ratio * size` rounded to the nearest integer, halves up, at least 1."""
    return min(size, max(1, int(ratio * size + 0.5)))


def oriented(weight: torch.Tensor, left: bool) -> torch.Tensor:
    """A weight (..., a, b) as A, whose columns Q mixes: the weight itself, or its transpose if Q acts on the left."""
    return weight.mT if left else weight


def split(matrix: torch.Tensor, num_free: int) -> Subspace:
    """Find the free and the protected directions of one matrix A.

    Args:
        matrix: A (M, p) with M >= p, finite, in any floating dtype.
        num_free: f, from 1 to p. With f = p the full matrix is free and nothing is computed.

    Returns:
        Q (p, f), U_h (M, p - f) and the free directions' singular values (f,) in float64.
    """
    size = matrix.shape[-1]
    if num_free == size:
        return Subspace(None, None)
    a = matrix.double()
    squares, right = torch.linalg.eigh(a.mT @ a)
    protected_right = right[:, num_free:]
    left = a @ protected_right
    lengths = left.norm(dim=0)
    largest = squares[-1].clamp(min=0).sqrt()
    usable = lengths > NEGLIGIBLE * largest
    left = torch.where(usable, left / torch.where(usable, lengths, 1.0), 0.0)
    return Subspace(right[:, :num_free].contiguous(), left, squares[:num_free].clamp(min=0).sqrt())


def steps(scale: torch.Tensor) -> torch.Tensor:
    """D: the step of each free direction, for singular values (..., f).

    The singular values over their root mean square, at least `MIN_STEP`.
    """
    mean = scale.square().mean(-1, keepdim=True).sqrt()
    return torch.where(mean > 0, scale / mean.clamp(min=torch.finfo(scale.dtype).tiny), 1.0).clamp(min=MIN_STEP)


def decompose(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U, S and V of a matrix (M, p) with M >= p, the largest singular values first, in float64.

    Uses `eigh` of the Gram matrix, which on a GPU takes a tenth of the time of `svd`. Uses `svd` if a singular value is too
    small for that.

    Returns:
        U (M, p), S (p,), V (p, p): A = U diag(S) V^T.
    """
    a = matrix.double()
    right = torch.linalg.eigh(a.mT @ a)[1].flip(-1)
    left = a @ right
    scale = left.norm(dim=0)
    if bool(scale[-1] > WELL_CONDITIONED * scale[0]):
        return left / scale, scale, right
    left, scale, right = torch.linalg.svd(a, full_matrices=False)
    return left, scale, right.mT


def project_(change: torch.Tensor, protected: torch.Tensor, corner: torch.Tensor | None = None) -> None:
    """Remove the protected directions from a change, in place.

    With U_h in a dtype coarser than float32 the change is split into a sum of two such numbers, so that only the subspace is
    rounded, not the change.

    Args:
        change: Z (..., M, f) of a strict change, or Delta (..., M, p) of a corner change; float32 or float64.
        protected: U_h (..., M, k) in any dtype.
        corner: Q (..., p, f) for a corner change, otherwise None.
    """
    inner = change if corner is None else change - (change @ corner) @ corner.mT
    high = inner.to(protected.dtype)
    along = protected.mT @ high
    if protected.dtype != inner.dtype:
        along = along + protected.mT @ (inner - high).to(protected.dtype)
    leak = (protected @ along).to(change.dtype)
    change.sub_(leak if corner is None else leak - (leak @ corner) @ corner.mT)


def pull_to_base_(coordinates: torch.Tensor, penalty: torch.Tensor, rate: float) -> None:
    """Pull a weight toward its base weight: one step on the penalty sum_i penalty_i |Z_i|^2 / 2, in place.

    Each column Z_i becomes Z_i / (1 + rate penalty_i). penalty_i = s k e_i with the penalty strength s. e_i is proportional to
    the energy of the protected data's inputs X along direction i, that is to the squared change of the matrix's outputs on that
    data, |Delta X^T|^2. k is how much such a change matters. This is elastic weight consolidation (arXiv 1612.00796) with a
    Kronecker-factored curvature (arXiv 1805.07810) whose output factor is a multiple of the identity. The step is the proximal
    one, stable for any strength. It is separate from the optimizer's step, which would rescale it, as AdamW's weight decay is.

    Args:
        coordinates: Z (M, f).
        penalty: (f,), not negative.
        rate: learning rate of the optimizer step.
    """
    coordinates.div_(1 + rate * penalty)


def project_exactly(change: torch.Tensor, matrix: torch.Tensor, free: torch.Tensor, corner: bool = False) -> torch.Tensor:
    """Project a change to float64 accuracy, from A and Q alone. Used for weights to be saved.

    The range of U_h is that of A_h = A (I - Q Q^T), so the projection is a least squares problem. It is solved by its
    normal equations (one Cholesky factor of size p) and refined.

    Args:
        change: Z (M, f) or Delta (M, p).
        matrix: A (M, p) that was split.
        free: Q (p, f).
        corner: whether the change is a corner change.

    Returns:
        The projected change, float64.
    """
    a, q, z = matrix.double(), free.double(), change.double()
    inner = z - (z @ q) @ q.mT if corner else z
    gram = a.mT @ a
    gram = gram - q @ (q.mT @ gram)
    gram = gram - (gram @ q) @ q.mT
    scale = torch.linalg.matrix_norm(gram).clamp(min=torch.finfo(torch.float64).tiny)
    # Makes Q's own directions, and those of negligible singular values, invertible.
    ridge = (NEGLIGIBLE**2 * scale) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky((gram + gram.mT) / 2 + scale * (q @ q.mT) + ridge)
    rest = inner
    for _ in range(NUM_REFINEMENTS):
        along = a.mT @ rest
        along = along - q @ (q.mT @ along)
        along = torch.cholesky_solve(along, factor)
        along = along - q @ (q.mT @ along)
        rest = rest - a @ along
    if not corner:
        return rest
    leak = inner - rest
    return z - (leak - (leak @ q) @ q.mT)


def change_of(coordinates: torch.Tensor, free: torch.Tensor | None, left: bool) -> torch.Tensor:
    """The change of a weight (..., a, b) from its coordinates: Z Q^T, or Q Z^T if Q acts on the left. Q D may replace Q.

    Coordinates without Q are the full change, in A's orientation.
    """
    if free is None:
        return oriented(coordinates, left)
    return free @ coordinates.mT if left else coordinates @ free.mT
