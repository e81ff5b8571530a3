"""One self-contained HTML page of results: tables, curves, commands; light and dark, any width."""

import base64
import json
import re
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.report import Result, Row


def render(rows: list["Row"]) -> str:
    """The page for `rows`, which hold every metric of every result in order."""
    results = [list(group) for _, group in groupby(rows, key=lambda row: row.result.path)]
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    compared = sum(any(row.reported for row in group) for group in results)
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>Foundation Model Gym: results</title><style>\n{style}</style></head><body>",
        "<h1>Foundation Model Gym</h1>",
        f"<p>{count(len(results), 'result')}, {compared} of them held against reported numbers. "
        "Mean ± standard deviation where several seeds were run; ↑ higher is better, "
        "↓ lower is better.</p>",
    ]
    for step, groups in groupby(sorted(results, key=step_of), key=step_of):
        parts.append(f"<h2>{escape(step)}</h2>")
        parts += [card(group) for group in groups]
    if not results:
        parts.append("<p>No results yet.</p>")
    return "\n".join(parts) + "\n</body></html>\n"


def step_of(rows: list["Row"]) -> str:
    return rows[0].result.values["step"]


def card(rows: list["Row"]) -> str:
    """One result: its numbers beside the reported ones, its curves, how to get it again."""
    result = rows[0].result
    where, *_, hardware, time, command = rows[0].cells()
    machine = "<span class=tag>this machine</span>" if result.fresh else ""
    body = "".join(
        "<tr>"
        + cell("metric", escape(row.metric))
        + cell("measured", escape(row.measured), "measured number")
        + cell("n", row.n, "number")
        + cell("reported", reported(row), "" if row.reported else "none")
        + "</tr>"
        for row in rows
    )
    config = json.dumps(result.values.get("config", {}), indent=2, ensure_ascii=False)
    return f"""<section class=card>
<div class=head><h3>{escape(where)}</h3>{machine}</div>
<div class=soft>{escape(result.name)} · {escape(facts(result))}{escape(hardware)} · {time}</div>
<table><thead><tr><th>metric<th>measured<th>n<th>reported</tr></thead><tbody>{body}</tbody></table>
{own_table(**result.values.get("table", {}))}{picture(result)}<pre>{escape(command)}</pre>
<details><summary>configuration</summary><pre>{escape(config)}</pre></details>
</section>"""


def cell(name: str, content: str, kind: str = "") -> str:
    return f'<td data-label="{name}" class="{kind}"><div>{content}</div></td>'


def reported(row: "Row") -> str:
    return "".join(f"{escape(a)}<small>{escape(b)}</small>" for a, b in row.reported)


def facts(result: "Result") -> str:
    """Parameters and tokens, where the result states them."""
    values = result.values
    parameters = (values.get("model") or {}).get("parameters")
    told = [f"{parameters / 1e6:.1f} M parameters"] if parameters else []
    told += [f"{values['tokens'] / 1e6:,.1f} M tokens"] if values.get("tokens") else []
    return "".join(f"{text} · " for text in told)


def visible(text: str) -> str:
    """With a dot for each control character."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "·", text)


def own_table(rows: Sequence[list[str]] = (), notes: Sequence[str] = ()) -> str:
    """The table that a result holds, its first row the heads; it scrolls where it is too wide."""
    cells = (
        [re.sub("`(.+)`", r"<code>\1</code>", escape(visible(c))) for c in row] for row in rows
    )
    body = "".join(f"<tr><td>{'<td>'.join(row)}</tr>" for row in cells)
    body = f"<div class=wide><table>{body}</table></div>".replace("\n", "<br>") if rows else ""
    return body + "".join(f"<div class=soft>{escape(note)}</div>" for note in notes)


def picture(result: "Result") -> str:
    if not result.curves:
        return ""
    data = base64.b64encode(result.curves.read_bytes()).decode()
    return f'<div class=curves><img alt="curves" src="data:image/png;base64,{data}"></div>\n'


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
