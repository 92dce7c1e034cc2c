"""Diffusion: noise schedule, the samplers' transitions, sampling of groups, and the prior's training loss."""
