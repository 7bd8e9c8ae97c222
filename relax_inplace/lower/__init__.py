"""The in-place function -> what the virtual machine runs."""
