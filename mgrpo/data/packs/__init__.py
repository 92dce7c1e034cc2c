"""Motion packs: clips of another skeleton, end to end in one npz file, with that skeleton's rest pose."""
