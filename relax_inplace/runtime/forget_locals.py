"""Release the weights that an error holds: the frames in its traceback keep their variables."""

from __future__ import annotations

import traceback

__all__ = ["forget_locals"]


def forget_locals(error: BaseException | None) -> None:
    """Clear the variables in the frames of an error, and of the errors before it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
