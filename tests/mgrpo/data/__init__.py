"""Tests of mgrpo.data."""
