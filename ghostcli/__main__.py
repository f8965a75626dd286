"""`python -m ghostcli` is the `ghost` command."""

from ghostcli.cli import main

if __name__ == "__main__":
    main()
