"""What a model makes from its weights alone: found, chosen within a budget, and placed."""
