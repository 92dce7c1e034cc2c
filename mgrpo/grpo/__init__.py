"""Group relative policy optimisation of a diffusion policy: rollouts, updates and health as pure functions over
mgrpo.kernels."""
