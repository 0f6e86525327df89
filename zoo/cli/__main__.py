"""Entry point of `python -m zoo.cli`, the same as the command `zoo`."""

from zoo.cli.main import run

if __name__ == "__main__":
    run()
