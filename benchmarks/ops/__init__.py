"""Workloads, one file per operation: ``workloads(device, backends)`` returns its sizes. Files are found by themselves."""
