"""The command line: commands, their output and error messages. The only package that prints."""


def main() -> None:
    """Runs the command of `sys.argv`. An interrupt ends it with 130, also while modules are still being imported."""
    try:
        from earthshine.cli.app import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


__all__ = ["main"]
