"""The paper's ablations and ours: rows that differ in one thing, several seeds, one evaluation, one table."""
