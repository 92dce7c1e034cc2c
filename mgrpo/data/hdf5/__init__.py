"""Motion in HDF5 files of EgoAllo's layout: read in blocks as it is needed, whatever the size of the file."""
