"""`python -m era_dagster.cli`: the `era` command where the script folder is not on the PATH."""

from era_dagster.cli.main import main

main()
