"""A record of results, bit for bit: `python tests/record/record.py write FILE`, then, after a change that must not
alter a number, `... check FILE`.

Hashes cover purified images and gradients of every scheme, solver and gradient mode, all points at which every attack
evaluates its model, and the summaries of reduced presets. They hold on one kind of processor and one version of torch:
write and check on the same machine.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in another order are other numbers; before torch is imported
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # as in the tests: record.NAME is the module beside this one

import torch
from record.attacked import attacked
from record.defences import defences
from record.digests import Entries
from record.presets import identities, presets

torch.set_num_threads(1)
RECORD = Path(__file__).with_name("record.json")


def environment() -> dict[str, str]:
    """What the hashes hold for."""
    return {
        "torch": torch.__version__.split("+")[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    return " ".join(
        facts.get(name, "?").strip()
        for name in ("vendor_id", "cpu family\t", "model\t\t", "cpu family", "model")
        if name in facts
    )


def entries() -> Entries:
    yield from defences()
    yield from attacked()
    yield from identities()
    yield from presets()


def measure(only: str) -> dict[str, str]:
    found = {}
    for name, make in entries():
        if only in name:
            found[name] = make()
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "check"))
    parser.add_argument("file", nargs="?", type=Path, default=RECORD)
    parser.add_argument("--only", default="", help="names that hold this text")
    options = parser.parse_args()
    found = measure(options.only)
    if options.what == "write":
        options.file.write_text(json.dumps({"environment": environment(), "results": found}, indent=1) + "\n")
        return
    record = json.loads(options.file.read_text())
    if record["environment"] != environment():
        sys.exit(
            f"the record was written on {record['environment']}, this is {environment()}: write one here, from the"
            " revision to compare with"
        )
    wanted = {name: value for name, value in record["results"].items() if options.only in name}
    changed = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    for name in changed:
        print(f"{name}: {wanted.get(name)} -> {found.get(name)}")
    print(f"{len(wanted) - len(changed)} of {len(wanted)} results equal")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
