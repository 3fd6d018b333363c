"""`purify` and `python -m purify`: finds the command line in the package `benchmarks` that lies beside this one.

`benchmarks` and `attacks` are common folder names, so another package of that name may come first on the import path;
better to say so than to fail in the middle of it. This launcher is the only place in `purify` that knows of its sibling
packages.
"""

import importlib
import importlib.util
import sys
from pathlib import Path


def main() -> None:
    here = Path(__file__).resolve().parents[1]
    for name in ("attacks", "benchmarks"):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        if not any(Path(place).resolve().is_relative_to(here / name) for place in places if place):
            found = ", ".join(map(str, places)) or "nothing"
            print(
                f"error: purify needs its own package {name!r} at {here / name}, but the import path finds {found}"
                " first",
                file=sys.stderr,
            )
            sys.exit(2)
    importlib.import_module("benchmarks.cli").main()


if __name__ == "__main__":
    main()
