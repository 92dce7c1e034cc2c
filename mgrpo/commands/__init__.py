"""The commands that are no trainings: a module each, with its options and its function, and what several share."""
