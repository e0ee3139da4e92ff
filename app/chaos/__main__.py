"""`python -m app.chaos`: one run of the fault suite."""

import sys

from app.chaos.run import main

if __name__ == "__main__":
    sys.exit(main())
