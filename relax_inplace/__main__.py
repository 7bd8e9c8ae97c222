"""``python -m relax_inplace``: the command line, where ``relax-inplace`` is not on the path."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="relax-inplace")
