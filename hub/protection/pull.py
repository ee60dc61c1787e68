"""A pull toward the base weights along the directions that the protected data uses: covariances as low rank plus diagonal.

The penalty on a change Delta (M x p) of a layer is tr(Delta S Delta^T) / 2, with S a multiple of the covariance of the layer's
inputs. A proximal step on it is Delta (I + r S)^-1 for the rate r. All directions of p inputs are p x p numbers; here S is
V diag(e) V^T + diag(d): the directions that the data uses most, and what is left of each channel's energy. Its inverse is that
of Woodbury's identity,

    (I + r S)^-1 = E - E V ((r diag(e))^-1 + V^T E V)^-1 V^T E,   E = (I + r diag(d))^-1

two products with V a step.
"""

from dataclasses import dataclass

import torch

from hub.protection.covariances import largest_directions

RANK = 512
"""Columns of V that are usually stored for an input, or p if it has fewer channels."""

ROUNDINGS = 100
"""Added to the diagonal of a matrix with unit diagonal before its Cholesky factorization, in units of its dtype's epsilon."""


@dataclass(frozen=True)
class Pull:
    """The penalty S on the changes of one matrix, per unit of the rate."""

    top: torch.Tensor
    """V (p, r), orthonormal columns."""

    energy: torch.Tensor
    """e (r,), not negative."""

    rest: torch.Tensor
    """d (p,), not negative."""

    def pull_(self, change: torch.Tensor, rate: float | torch.Tensor) -> None:
        """Pull a change toward 0 by one proximal step, in place.

        Args:
            change: Delta (M, p), or the A of a product B A.
            rate: r, usually the learning rate of the optimizer step. A scalar.
        """
        change.div_(1 + rate * self.rest)
        # Sides are scaled by the root of the energy, so that one of 0 needs no inverse.
        side = self.top * (rate * self.energy).sqrt()
        damped = side / (1 + rate * self.rest)[:, None]
        inner = side.mT @ damped
        inner.diagonal().add_(1)
        # Energies may differ by many orders of magnitude, and rounding of the large ones would make the matrix indefinite. So
        # it is scaled to a unit diagonal, to which more than the rounding is added.
        scale = inner.diagonal().rsqrt()
        inner = scale[:, None] * inner * scale
        inner.diagonal().add_(ROUNDINGS * torch.finfo(inner.dtype).eps)
        along = torch.cholesky_solve(((change @ side) * scale).mT, torch.linalg.cholesky(inner)).mT
        change.addmm_(along * scale, damped.mT, alpha=-1)


def low_rank_plus_diagonal(covariance: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Approximate a covariance as V diag(e) V^T + diag(d).

    Args:
        covariance: (p, p), positive semidefinite.
        rank: columns of V, at most p.

    Returns:
        V (p, rank), e (rank,) ascending, d (p,): the diagonal that V diag(e) V^T leaves.
    """
    top, energy = largest_directions(covariance, rank)
    rest = covariance.diagonal() - (top.square() * energy).sum(-1)
    return top, energy, rest.clamp(min=0)
