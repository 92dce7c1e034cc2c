"""Tests of the parts of mgrpo but its training, a folder for each package that has them; and what several of these
share."""
