"""`python -m benchmarks.runs.schema FOLDER` writes the JSON Schema of every kind of result."""

import sys
from pathlib import Path

from benchmarks.runs.schema.kinds import write_json_schemas

if __name__ == "__main__":
    write_json_schemas(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference/schemas"))
