"""The README's Python runs as it stands, and does what it says."""

import re

from conftest import ROOT


def test_readme_block(server, capsys):
    text = (ROOT / "README.md").read_text()
    block = re.search(r"runs this block -->\n```python\n(.*?)```", text, re.DOTALL).group(1)
    exec(block.replace("http://127.0.0.1:8000", server.url), {})
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[1]) for line in lines[:20]]
    assert losses[-1] < 0.1 * losses[0], losses
    assert lines[-1].startswith("tinker://") and lines[-1].endswith("/weights/melted")
