"""Tests of mgrpo.export."""
