"""The sizes that a plan starts from, for a model's files: those of the config, or larger ones where the files' headers
have them.
"""

from earthshine.plan import Sizes, sizes_of
from earthshine.weights import Checkpoint, embedding_bytes, slot_bytes, units


def stored_sizes(checkpoint: Checkpoint, dtype: str, trunk: str) -> Sizes:
    """`dtype` and `trunk` as in plan.PlanArgs. Equals `sizes_of(spec)` for files that store what their config says."""
    parts = {name: unit.nbytes for name, unit in units(checkpoint).items()}
    parts["embed"] = embedding_bytes(checkpoint.spec)
    return sizes_of(checkpoint.spec, dtype, trunk).at_least(parts, slot_bytes(checkpoint))
