"""What "the same function" means: functional distances, and what held-out inputs prove about them."""

from .distances import Distance, functional_distance, get_distance, known_distances, register_distance
from .statistics import (
    Certificate,
    binomial_interval,
    certify_changed_share,
    certify_disagreement,
    certify_distance,
    mean_interval,
)


__all__ = [
    "Certificate",
    "Distance",
    "binomial_interval",
    "certify_changed_share",
    "certify_disagreement",
    "certify_distance",
    "functional_distance",
    "get_distance",
    "known_distances",
    "mean_interval",
    "register_distance",
]
