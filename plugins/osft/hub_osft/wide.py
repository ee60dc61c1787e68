"""Which matrices are wide: those whose pull is approximated, and whose change is trained without directions.

With a strength all directions of a matrix are free, so its change needs no directions: it is trained as it is. They are needed
for the pull alone. All directions of p inputs are p x p numbers, which for an MLP's second matrix is more than its weights. So
the pull is that of `hub.protection.pull`.
"""

from hub.protection import pull

WIDE = 4096
"""Inputs above which a matrix has the approximation. Below, all directions take little."""

RANK = pull.RANK
"""Directions that it keeps."""
