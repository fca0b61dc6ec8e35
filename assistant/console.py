"""How a command says that it failed; the commands of the other rooms say it the same way."""

import json
import sys


def fail(sentence: str, as_json: bool) -> int:
    """Say on standard error, and as `{"error"}` on standard output where asked for, why; return the exit status 1."""
    if as_json:
        sys.stdout.write(json.dumps({"error": sentence}) + "\n")
    sys.stderr.write(sentence + "\n")
    return 1
