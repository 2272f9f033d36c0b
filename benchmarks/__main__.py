"""`./dev bench [name…]`: run the benchmarks, keep their figures, print them as a table."""

import argparse
import importlib
import sys

from benchmarks.report import table, write_page

# In the order of a run: what needs a quiet machine most comes last.
NAMES = (
    "startup",
    "dispatch",
    "weightdiff",
    "models",
    "compression",
    "relevance",
    "inspection",
    "doors",
    "encryption",
    "segments",
    "files",
    "folder",
    "transfer",
    "serving",
    "front",
    "oracle",
    "api",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--table", action="store_true", help="only print what was kept")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    names = options.names or NAMES
    for name in () if options.table else names:
        print(f"{name}…", file=sys.stderr, flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
    write_page()
    print(table(options.names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
