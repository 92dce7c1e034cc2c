"""Tests of mgrpo.guidance."""
