"""The whole method, small: one command from recorded motion to a post-trained model and a report."""

from __future__ import annotations

from mgrpo.demo.config import DemoConfig
from mgrpo.demo.pipeline import run_demo

__all__ = ["DemoConfig", "run_demo"]
