"""``python -m relax_inplace`` runs the command line without ``relax-inplace`` on the path."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="relax-inplace")
