"""An error is no owner: the frames in its traceback hold what their functions worked on."""

from __future__ import annotations

import traceback

__all__ = ["forget_locals"]


def forget_locals(error: BaseException | None) -> None:
    """Clear the variables of all functions that an error has left, in those before it, too."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
