"""`python -m raylingvo`."""

from raylingvo.cli import main

if __name__ == "__main__":
    main()
