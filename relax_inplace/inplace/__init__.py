"""A transform -> the in-place function."""
