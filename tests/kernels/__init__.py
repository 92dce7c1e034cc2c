"""Tests of mgrpo.kernels and of the native code."""
