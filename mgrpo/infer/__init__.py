"""From what a headset recorded to a body in motion: readers of head trajectories, their checks, sampling of any length,
live sampling, and files."""
