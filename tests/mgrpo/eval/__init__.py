"""Tests of mgrpo.eval."""
