"""``python -m wkv`` is the command ``wkv``."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
