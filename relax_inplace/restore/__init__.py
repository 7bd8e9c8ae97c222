"""A transform -> its inverse."""
