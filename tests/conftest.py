"""What holds for every test."""

from __future__ import annotations

import signal

# A suite that a script has put into the background inherits an ignored SIGINT, and its children from it: what
# is tested with Ctrl-C would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)
