"""A task process that knows the types of `tests.helpers.task_types`."""

import sys

from app.adapters.tasks.child import main
from tests.helpers.task_types import Types

if __name__ == "__main__":
    main(sys.argv[1:], Types())
