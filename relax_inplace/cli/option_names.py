"""What an error says of Python's parameters, as the command line calls them.

The passes and the runtime name their parameters (``lazy=True``): whoever calls them gave those. On
the command line the same was an option. This is the one place that knows both names.
"""

from __future__ import annotations

import re

__all__ = ["in_options"]

_FLAGS = {
    "lazy": "--lazy",
    "reference": "--verify",
    "restore": "--restore",
    "strict": "--strict",
    "ties": "--ties",
    "verify": "--verify",
}
_WITH_VALUE = {
    "functions": "--function",
    "max_resident": "--max-resident",
    "memory_limit": "--memory-limit",
    "only": "--only",
    "skip": "--skip",
}
_VALUE = r"(\[[^\]]*\]|'[^']*'|[\w.]+)"


def in_options(text: str) -> str:
    """An error of a pass or of the runtime, with options for parameters."""
    for pattern, said in _ROWS:
        text = pattern.sub(said, text)
    return text


def _repeated(match: re.Match[str]) -> str:
    """``functions=['f', 'g']`` as ``--function f --function g``."""
    option, value = _WITH_VALUE[match[1]], match[2]
    if value == "[...]":
        return f"{option} NAME"
    given = re.findall(r"'([^']*)'", value) or [value.strip("[]")]
    return " ".join(f"{option} {one}" for one in given)


def _tied(match: re.Match[str]) -> str:
    return "--tied " + "=".join(re.findall(r"'([^']*)'", match[1]) or [match[1]])


# Of several that fit, the first.
_ROWS = [
    (re.compile(pattern), said)
    for pattern, said in (
        (r"^(Lift)?InplaceTransformParams: ", ""),
        (r"^convert_params: ", ""),
        (r"\b(convert|transform)_params\(verify=True\)", "--verify"),
        (r"compile what InplaceTransformParams or Lift\w+ returns", "make it with build"),
        (r"call stream_params, or compile", "compile"),
        (r"\bwith checksum=False\b", "without --checksum"),
        (r'\bextra="ignore"', "--ignore-extra"),
        (r"\bnames=(?!\w)", "--names FILE"),
        (r"\btied=\[([^\]]*)\]", _tied),
        (r"\btied=(?!\w)", "--tied"),
        (r"\btir_var_upper_bound=\{'(\w+)': (\d+)\}", r"--bound \1=\2"),
        (rf"\b({'|'.join(_FLAGS)})=True\b", lambda match: _FLAGS[match[1]]),
        (rf"\b({'|'.join(_WITH_VALUE)})={_VALUE}", _repeated),
    )
]
