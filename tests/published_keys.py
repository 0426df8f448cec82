"""What the released checkpoints contain: size of the model -> official key -> shape."""

import gzip
import json
from pathlib import Path

_FILE = Path(__file__).parent / "data" / "published_keys.json.gz"
KEYS: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(_FILE.read_bytes()))
