"""What programs complain of, but for what depends on the privileges of who runs the tests."""

import re


def complaints(errors: str) -> str:
    """Errors without the warning that the kernel grants users smaller socket buffers than it grants root."""
    return re.sub(r"^(WARNING: )?buffer: asked for a socket receive buffer .*\r?\n", "", errors, flags=re.MULTILINE)
