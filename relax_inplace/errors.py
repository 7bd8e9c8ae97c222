"""Errors that keep their structure on the way through TVM.

A pass runs inside TVM's C++. An exception passes through it as the name of its class and its
message, nothing else. So such an error reads its attributes back from its message.
"""

from __future__ import annotations

import re
from typing import ClassVar

import tvm_ffi

__all__ = ["StructuredError"]


class StructuredError(ValueError):
    """A ValueError of one line. ``template`` makes the line from fields, and reads them back.

    Attributes
    ----------
    fields : dict of str to str
        The fields, which are also attributes of the error. Empty if the message is not of the
        template's form.
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
        """Make the error. It keeps these fields, also if a field contains text of the template."""
        error = cls(cls.template.format(**fields))
        error.fields = fields
        return error
