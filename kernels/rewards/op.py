"""The registered operators of the rewards."""

from __future__ import annotations

from .._library import define_op

define_op("group_rewards")
define_op("motion_rewards")
