"""What the Python smoke programs share: one printed line per check, the same on every run."""

import datetime
import json
import sys

WORKERS = 20
TRANSACTIONS = 20


def check(name, *seen):
    """Prints one line; what was seen is rendered so that it stays one line."""
    print(f"- {name}:", *(item if isinstance(item, str) else render(item) for item in seen))


def render(value):
    """The value as JSON, with what JSON has no form for as text."""
    return json.dumps(value, default=_text, ensure_ascii=False, sort_keys=True)


def _text(value):
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return f"{type(value).__name__}({value})"


class Failures:
    """Counts the parts of a program that could not do what they set out to do."""

    def __init__(self):
        self.count = 0

    def add(self, name, error):
        """Reports a part that ended early."""
        self.count += 1
        check(name, f"FAILED: {type(error).__name__}: {error}")

    def exit(self):
        """Ends the program: status 0 and a last line that says so, unless a part has failed."""
        if self.count:
            sys.exit(1)
        print("done")
