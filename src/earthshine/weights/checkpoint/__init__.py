"""A published checkpoint under Earthshine's names; the only place, beside spec.families, that knows published ones.

`names` is the table that reader and writer share; `reader` holds a folder against it and hands out tensors.
Refuses a folder in which any expected tensor is missing, misshapen or mistyped, or any unexpected one is present.
"""

from earthshine.weights.checkpoint.reader import ByteRange, Checkpoint, Coverage, ExpertExtents, Share

__all__ = ["ByteRange", "Checkpoint", "Coverage", "ExpertExtents", "Share"]
