"""AMASS to the base model's training file: names, rules, floor and contacts, mirror image, rate, HDF5.

What differs from the original, and by which option, stands in :mod:`mgrpo.data.amass.process`.
"""
