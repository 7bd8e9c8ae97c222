"""What every stage asks of the IR."""
