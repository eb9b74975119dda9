"""The entry point: run the app; a known failure becomes one sentence on stderr and its exit code."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit."""
    from luspo_cli.app import app
    from luspo_cli.errors import KnownError

    try:
        app()
    except KnownError as error:
        if os.environ.get("LUSPO_DEBUG"):
            raise
        print(f"luspo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("luspo: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
