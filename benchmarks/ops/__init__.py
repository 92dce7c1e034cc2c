"""Workloads, one file per operation with a function ``workloads(device, backends)``; files are found by themselves."""
