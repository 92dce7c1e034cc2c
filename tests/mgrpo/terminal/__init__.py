"""Tests of mgrpo.terminal."""
