"""RICH: its files, and the motion of the people in them."""
