"""``python -m chatterbox.cli`` is ``chatterbox``."""

import sys

from chatterbox.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
