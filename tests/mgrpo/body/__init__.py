"""Tests of mgrpo.body."""
