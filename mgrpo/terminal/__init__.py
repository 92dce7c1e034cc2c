"""What a person sees of long work and how they stop it: text, progress, Ctrl-C."""
