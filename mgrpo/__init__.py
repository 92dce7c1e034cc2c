"""MotionGRPO: post-training of egocentric motion diffusion with group-relative policy optimisation.

Importing this package loads nothing heavy: torch comes with the module that needs it.
"""

from __future__ import annotations

__version__ = "0.1.0"
