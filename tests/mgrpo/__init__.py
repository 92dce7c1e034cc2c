"""Tests of the parts of mgrpo but its training."""
