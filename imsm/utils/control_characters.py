"""Show control characters of untrusted text as visible escapes."""

import re

# C0 and C1 without tab and newline, invisible and direction-changing characters, line separators, lone surrogates
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def escape_controls(text: str) -> str:
    r"""Return text in which each control character is an escape such as ``\x1b``; tab and newline stay.

    A terminal executes the raw characters, and a page that shows them reorders or hides text.
    """
    return _CONTROL.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
