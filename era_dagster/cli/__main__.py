"""Where `era` begins, also as `python -m era_dagster.cli` where the script folder is not on the PATH."""

import signal


def main() -> None:
    """Entry point of the console script. Until it is loaded Ctrl-C ends it without a word: nothing is begun yet."""
    heard = signal.getsignal(signal.SIGINT)
    if heard is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from era_dagster.cli.main import main as run

    signal.signal(signal.SIGINT, heard)
    run()


if __name__ == "__main__":
    main()
