"""Tests of mgrpo.runs."""
