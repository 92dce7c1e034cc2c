"""Tests of mgrpo.models."""
