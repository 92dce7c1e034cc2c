"""Tests of training and of what surrounds it."""
