"""Aria Digital Twin: its files, and the motion of body and headset in them."""
