"""Known faults, planted into text to see which of them the pipeline finds; and text repair.

exact      a copy of a document
near       a copy with 1 to 6 words changed
mojibake   the document itself, its UTF-8 read as Windows-1252 or Latin-1
page       a page of menus, notices, filler or code beside the document
lines      one to three notices or menus between the lines of the document
"""

import random
import re
from collections.abc import Iterator

from step3_peripherals.dedup import exact_hash, jaccard, shingles

KINDS = ("exact", "near", "mojibake", "page", "lines")
NOTICES = (
    "This website uses cookies to improve your experience.",
    "By continuing to browse you accept our terms of use.",
    "Please enable JavaScript in your browser to see this page.",
    "Home | News | About us | Contact | Sitemap",
    "Read our privacy policy to learn how your data are kept.",
    "Share on Facebook    Tweet    Print    Comments (0)",
)
PAGES = (
    "\n".join(NOTICES * 3),
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor. " * 20,
    "\n".join(f"function f{i}(x) {{ return {i} * x; }} // Scales by {i}." for i in range(40)),
    "\n".join(f"• Product number {i}, in stock and sent today." for i in range(60)),
    "Click here to win a prize that you will never forget.\n" * 40,
    "\n".join(f"{i} {i * 7} {i * 13}." for i in range(1000, 1200)),
)
CHINESE_NOTICES = (
    "本网站使用cookie改善您的体验。",
    "继续浏览即表示您接受我们的使用条款。",
    "请在浏览器中启用JavaScript以查看本页。",
    "首页 | 新闻 | 关于我们 | 联系方式 | 网站地图",
    "请阅读我们的隐私政策，了解我们如何保存您的数据。",
    "分享到微博    转发    打印    评论 (0)",
)
CHINESE_PAGES = (
    "\n".join(CHINESE_NOTICES * 3),
    "这是一段占位文字，没有任何意义，请替换成您自己的内容。" * 20,
    "\n".join(f"function f{i}(x) {{ return {i} * x; }} // 把这个数乘以{i}。" for i in range(40)),
    "\n".join(f"• 第{i}号商品有现货，今天下单今天发货" for i in range(60)),
    "点击这里赢取您永远不会忘记的大奖。\n" * 40,
    "\n".join(f"{i}、{i * 7}、{i * 13}。" for i in range(1000, 1200)),
)


def plant(text: str, id: str, share: float, seed: int) -> Iterator[tuple[str, str, dict]]:
    """Yield (text, id, truth) of the document, and of what is planted beside it.

    `truth` is empty for a document that is what it was. The choice depends on seed and id alone.
    """
    rng = random.Random(f"{seed}/{id}")
    kind = rng.choice(KINDS) if rng.random() < share else ""
    if kind == "mojibake":
        curly = curl(text)
        garbled = garble(curly, rng.choice(("sloppy-windows-1252", "latin-1")))
        if garbled != curly:  # plain ASCII reads the same in all of them
            yield garbled, id, {"kind": kind, "hash": exact_hash(repair(curly)[0])}
            return
    if kind == "lines":
        lines, known = text.split("\n"), CHINESE_NOTICES if is_chinese(text) else NOTICES
        notices = rng.sample(known, rng.randint(1, 3))
        for notice in notices:
            lines.insert(rng.randint(0, len(lines)), notice)
        yield "\n".join(lines), id, {"kind": kind, "lines": notices}
        return
    yield text, id, {}
    truth = {"kind": kind, "of": id}
    if kind == "exact":
        yield text, f"{id}+exact", truth
    elif kind == "near":
        copy = edit(text, rng.randint(1, 6), rng)
        truth["jaccard"] = jaccard(shingles(text), shingles(copy))
        yield copy, f"{id}+near", truth
    elif kind == "page":
        yield rng.choice(CHINESE_PAGES if is_chinese(text) else PAGES), f"{id}+page", truth


def is_chinese(text: str) -> bool:
    """True if one of the first 200 characters is Han (U+4E00 to U+9FFF)."""
    return re.search("[\u4e00-\u9fff]", text[:200]) is not None


def edit(text: str, n: int, rng: random.Random) -> str:
    """Put other words of the text in the place of n words (n characters where they are Chinese)."""
    words = list(re.finditer(r"[a-zA-Z]+|[\u4e00-\u9fff]", text))
    for word in sorted(rng.sample(words, min(n, len(words))), key=lambda m: -m.start()):
        text = text[: word.start()] + rng.choice(words)[0] + text[word.end() :]
    return text


def curl(text: str) -> str:
    """Typographic quotes and dashes, the non-ASCII characters that English has most."""
    text = re.sub(r"(?<=\w)'(?=\w)", "’", text).replace(" - ", " — ")
    return re.sub(r'"([^"\n]*)"', r"“\1”", text)


def garble(text: str, codec: str) -> str:
    """UTF-8 read as something else. The codec sloppy-windows-1252 comes with ftfy."""
    import ftfy.bad_codecs  # noqa: F401 (registers it)

    return text.encode("utf-8", "replace").decode(codec)


# --- repair --------------------------------------------------------------------------------------

# What UTF-8 or Windows-1252 read as something else leaves behind; a witness apart from ftfy.
DAMAGE = re.compile("[\x80-\x9f]|[\u00c2-\u00f4][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")


def repair(text: str) -> tuple[str, str]:
    """(repaired text, what was wrong): mojibake, characters (entities, controls, ...) or "".

    Curly quotes, ligatures and full-width forms stay as they are.
    """
    import ftfy

    config = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False
    )
    fixed = ftfy.fix_text(text, config)
    if fixed == text:
        return text, ""
    lines = (line for line in text.split("\n") if not line.isascii())
    mojibake = any(ftfy.fix_encoding(line) != line for line in lines)
    return fixed, "mojibake" if mojibake else "characters"
