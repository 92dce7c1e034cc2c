"""Tests of mgrpo.rewards."""
