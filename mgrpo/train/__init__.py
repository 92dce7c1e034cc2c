"""The trainings and their options: one readable file per loop; loops share functions, not each other."""
