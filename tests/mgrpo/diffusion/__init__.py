"""Tests of mgrpo.diffusion."""
