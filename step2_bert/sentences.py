"""Sentence splitting with one regular expression, for Latin script and Chinese.

A boundary needs a full stop, question or exclamation mark, white space and then something that can
open a sentence; Chinese marks need neither. Initials and common abbreviations do not end one.
"""

import re

_ABBREVIATIONS = """
    Mr Mrs Ms Messrs Dr Prof Rev Hon Gen Col Maj Capt Lt Sgt Gov Sen Rep Pres St Mt Ft Sr Jr
    vs etc al cf ca approx No Nos Vol vol pp Fig fig Eq Sec Art Ch ed eds trans
    Inc Ltd Co Corp Bros dept est
    Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec
"""

_NO_END = "".join(rf"(?<!\b{word}\.)" for word in ["[A-Za-z]", *_ABBREVIATIONS.split()])
_BOUNDARY = re.compile(
    rf"""
      (?: [.]{_NO_END} | [.]{{2,}} | [!?]+ ) ["'”’»)\]]*  \s+ (?= ["'“‘«(\[]* [^\W_a-z] )
    | [。！？]+ [”’」』）]*
    """,
    re.VERBOSE,
)


def split_sentences(paragraph: str) -> list[str]:
    """Cut a paragraph into sentences; joined again they hold every character but white space."""
    cuts = [0, *(match.end() for match in _BOUNDARY.finditer(paragraph)), len(paragraph)]
    pieces = (paragraph[a:b].strip() for a, b in zip(cuts, cuts[1:], strict=False))
    return [piece for piece in pieces if piece]
