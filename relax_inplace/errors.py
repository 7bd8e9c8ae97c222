"""Errors that keep their structure on the way through TVM.

A pass runs inside TVM's C++, through which an exception travels as the name of its class and its
message. So the message is the whole of such an error, and its attributes are read back from it.
"""

from __future__ import annotations

import re
from typing import ClassVar

import tvm_ffi

__all__ = ["StructuredError"]


class StructuredError(ValueError):
    """A ValueError of one line, made from and read as the fields of ``template``.

    Attributes
    ----------
    fields : dict of str to str
        Also attributes of the error itself. Empty if the message was not made by :meth:`of`.
    """

    template: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Make tvm-ffi give back this class, not RuntimeError."""
        tvm_ffi.register_error(cls)

    def __init__(self, message: str):
        super().__init__(message)
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.*)", re.escape(self.template))
        match = re.search(pattern, message, re.DOTALL)
        self.fields: dict[str, str] = match.groupdict() if match else {}

    def __getattr__(self, name: str) -> str:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    @classmethod
    def of(cls, **fields: str) -> StructuredError:
        """Make the error; its fields are these, also if one contains what separates them."""
        error = cls(cls.template.format(**fields))
        error.fields = fields
        return error
