"""Chinese as it is written, from text in which a segmenter has put spaces between words."""

from __future__ import annotations

import regex

# A space stays only where a Latin letter or a digit stands on both sides: "iPhone 5", "New York".
_SEGMENTERS_SPACE = regex.compile(r"(?<![\p{Script=Latin}\p{Nd}])\s+|\s+(?![\p{Script=Latin}\p{Nd}])")


def join_chinese(text: str) -> str:
    """`"iPhone 5 是 2012 年 发布 的"` → `"iPhone 5是2012年发布的"`."""
    return _SEGMENTERS_SPACE.sub("", text)
