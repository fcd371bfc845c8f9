"""Tables for papers: LaTeX with booktabs, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import re
from typing import NamedTuple

TABLES = (".tex", ".md", ".csv")


class Block(NamedTuple):
    """The rows of a table that are of one part."""

    title: str
    rows: list[list[str]]
    best: set[tuple[int, int]]  # (row, column) of the best figures


def make_table(titles: list[str], blocks: list[Block], ending: str) -> str:
    """A table as LaTeX (with booktabs), Markdown or CSV; of several blocks each has its title."""
    several = len(blocks) > 1
    if ending == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["set"] * several + titles)
        writer.writerows([block.title] * several + row for block in blocks for row in block.rows)
        return text.getvalue()
    if ending == ".md":
        lines = []
        for block in blocks:
            lines += [f"**{block.title}**", ""] if several else []
            head = [titles, ["---", *["---:"] * (len(titles) - 1)]]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in head + block.rows]
            lines += [""]
        return "\n".join(lines[:-1]) + "\n"
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule"]
    lines.append(" & ".join(map(escape_latex, titles)) + r" \\")
    for block in blocks:
        lines.append(r"\midrule")
        if several:
            lines.append(rf"\multicolumn{{{len(titles)}}}{{l}}{{{escape_latex(block.title)}}} \\")
        for number, row in enumerate(block.rows):
            cells = [escape_latex(row[0]), *map(latex_number, row[1:])]
            bold = [rf"\textbf{{{cell}}}" if (number, n) in block.best else cell for n, cell in enumerate(cells)]
            lines.append(" & ".join(bold) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape_latex(text: str) -> str:
    text = re.sub(r"[\\~^]", lambda match: rf"\char{ord(match.group())} ", text)
    text = re.sub(r"[&%$#_{}]", lambda match: "\\" + match.group(), text)
    return text.replace(">=", r" $\geq$ ")


def latex_number(cell: str) -> str:
    """Figures with a minus sign as such, and a dash between the ends of an interval."""
    cell = re.sub(r"(?<=\d)-(?=\d)", "--", "--" if cell == "-" else cell)
    return re.sub(r"^-(?=\d)|(?<= )-(?=\d)", "$-$", cell).replace("<", "$<$")
