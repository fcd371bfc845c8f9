"""docs/reference.md: its tables are what the scripts say of themselves.

Run as a script, this writes the page anew: python tests/test_reference.py
"""

import os
import re
import subprocess
import sys

from conftest import ROOT, SCRIPTS

PAGE = ROOT / "docs" / "reference.md"

HEAD = """# Reference: options, exit statuses, checks

The fields of an entry stand in the [README](../README.md#the-annotation-file), the forms of runs and the metrics in
[scoring.md](scoring.md). This page is made of what the scripts say themselves, by `tests/test_reference.py`. Besides,
each script has `-h, --help` and `--version`.

"""


def test_the_page_is_what_the_scripts_say():
    assert PAGE.read_text(encoding="utf-8") == reference(), "write it anew: python tests/test_reference.py"


def reference():
    from soir import rules  # not above: conftest.py finds the package

    parts = [part for script in SCRIPTS for part in options_of(script)]
    parts.append("## The checks of verify_dataset.py\n")
    checks = [f"| `{check}` | {severity} | {text} |" for check, (severity, text) in rules.CHECKS.items()]
    parts += ["| check | finds | what |", "|---|---|---|", *checks]
    return HEAD + "\n".join(parts) + "\n"


def options_of(script):
    """The lines of the section of a script."""
    rows = ["| | option | meaning |", "|---|---|---|"]
    group, statuses = "", ""
    for line in help_of(script):
        title = re.fullmatch(r"(\w[\w ,()]*):", line)
        option = re.match(r"  (\S.*?)  +(\S.*)", line)
        if title:
            group = "" if title.group(1) in ("options", "optional arguments") else title.group(1)
        elif option and option.group(1) not in ("-h, --help", "--version"):
            rows.append(f"| {group} | `{option.group(1)}` | {escape(option.group(2))} |")
            group = ""
        elif line.startswith("Exit status: "):
            statuses = line
    assert len(rows) > 8
    assert statuses
    return [f"## {script}", "", statuses, "", *rows, ""]


def help_of(script):
    """The lines of --help, one per option."""
    command, env = [sys.executable, str(ROOT / script), "--help"], {**os.environ, "COLUMNS": "1000"}
    text = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout.decode("utf-8")
    return re.sub(r"\n {24}(?=\S)", "  ", text).splitlines()  # of a long option, the meaning stands in the next line


def escape(text):
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
