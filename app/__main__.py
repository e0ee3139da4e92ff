"""`python -m app` is `headrace`."""

from app.cli import main

if __name__ == "__main__":
    main()
