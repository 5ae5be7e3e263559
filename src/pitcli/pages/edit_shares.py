"""Marks the edits of an explained row in its texts, coloured by their shares of the gap."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pitcli.console import share_text

MARK = Markup('<{tag} class="edit{lowers}" style="--share: {colour:.2f}" title="{title}">{text}</{tag}>{label}')
LABEL = Markup('<small class="share">{}</small>')


def with_shares(response: str, edits: Sequence[Mapping[str, Any]]) -> tuple[Markup, Markup]:
    """Return the draft and the response as HTML: what an edit removes in <del>, what it adds in <ins>.

    Its share is behind what it adds, otherwise behind what it removes; its gap and range are shown on hover.
    """
    before, after, end = [], [], 0
    for edit in edits:
        start, until = edit["at"]
        kept = Markup("{}").format(response[end:start])
        before += [kept, _marked("del", edit, edit["from"], has_label=not edit["to"])]
        after += [kept, _marked("ins", edit, edit["to"], has_label=True)]
        end = until
    rest = Markup("{}").format(response[end:])
    return Markup("").join([*before, rest]), Markup("").join([*after, rest])


def _marked(tag: str, edit: Mapping[str, Any], text: str, has_label: bool) -> Markup:
    if not text:
        return Markup("")
    gap, share = edit["gap"], edit["share"]
    return MARK.format(
        tag=Markup(tag),
        lowers=" lowers" if gap is not None and gap <= 0 else "",
        colour=min(1.0, max(0.0, share or 0.0)),
        title=title(edit),
        text=text,
        label=LABEL.format(share_text(gap, share)) if has_label else "",
    )


def title(edit: Mapping[str, Any]) -> str:
    """Return what is known of an edit, in words."""
    gap, share, low = edit["gap"], edit["share"], edit.get("low")
    parts = ["no gap" if gap is None else f"gap {gap:+.2f}"]
    parts += [] if share is None else [f"share {share:.0%}"]
    parts += [] if low is None else [f"{low:.0%} to {edit['high']:.0%} by one gap model"]
    return ", ".join(parts)
