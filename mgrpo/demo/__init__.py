"""The whole method, small: one command from recorded motion to a post-trained model and a report."""

from __future__ import annotations

from mgrpo.demo.pipeline import DemoConfig, run_demo

__all__ = ["DemoConfig", "run_demo"]
