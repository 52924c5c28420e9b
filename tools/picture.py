"""Makes docs/runs.svg: a run that fails and one that passes, as a terminal shows them. What stands there was printed.

tools/picture.py [FOLDER OF ggml BUILDS]
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "runs.svg"
WIDTH = 118
COMMANDS = (
    "opconform test --op acc --backend ggml:Vulkan0 --ggml-lib ggml/b7836",
    "opconform test --op acc --backend ggml:Vulkan0 --ggml-lib ggml/b8121",
)
_THEME = TerminalTheme(
    (22, 24, 29),
    (208, 211, 217),
    [
        *((22, 24, 29), (224, 92, 92), (108, 190, 112), (214, 175, 84)),
        *((97, 160, 224), (190, 130, 210), (90, 190, 190), (208, 211, 217)),
    ],
)
#: rich's own format, without the fonts that it would load from elsewhere.
_FORMAT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>A run that fails and one that passes</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    """Run both commands in a folder of their own, and draw what they print."""
    builds = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".cache" / "ggml").resolve()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ggml").symlink_to(builds)
        for command in COMMANDS:
            start = time.monotonic()
            printed = _run(command, folder)
            console.print(Text(f"$ {command}", style="bold"))
            console.print(Text.from_ansi(printed))
            console.print(Text(f"({time.monotonic() - start:.1f} s)\n", style="dim"))
    OUT.write_text(console.export_svg(title="opconform", theme=_THEME, code_format=_FORMAT), encoding="utf-8")
    print(OUT)


def _run(command: str, folder: str) -> str:
    """What a command prints, in colour; the lines on the run itself are left out."""
    found = subprocess.run(
        [sys.executable, "-c", "from opconform.cli import main; main()", *shlex.split(command)[1:], "--seed", "1"],
        cwd=folder,
        env={**os.environ, "FORCE_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = found.stdout.rstrip("\n").split("\n")
    return "\n".join(line for line in lines if not re.match(r"seed \d|run \d|ggml:\S+  |…  ", line))


if __name__ == "__main__":
    main()
