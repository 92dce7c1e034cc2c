"""Tests of mgrpo.report."""
