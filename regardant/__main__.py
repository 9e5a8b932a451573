"""`python -m regardant` is the command line."""

from regardant.cli.main import app

app(prog_name="regardant")
