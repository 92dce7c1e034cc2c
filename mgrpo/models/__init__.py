"""Networks and the state they work on: packed motion state, conditioning, the denoiser (EgoAllo's architecture), the
perceptual model."""
