"""Calls that other libraries had and have no more, under their own names."""
