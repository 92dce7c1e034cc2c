"""The tests, and beside them what several of them share."""
