"""Texts and names that would run, hide, or break a page that takes them for anything but text."""

from cynosure.text import Document

RAN = "window.ran=1"
MARKUP = [
    f"<script>{RAN}</script>",
    f"</script><script>{RAN}</script>",
    f"</style><script>{RAN}</script>",
    f"</textarea></title></template><script>{RAN}</script>",
    f"--><script>{RAN}</script><!--",
    f"]]><script>{RAN}</script>",
    f"<img src=x onerror={RAN}>",
    f"<svg onload={RAN}><animate onbegin={RAN} attributeName=x></svg>",
    f'<iframe srcdoc="<script>parent.{RAN}</script>"></iframe>',
    f"<a href='javascript:{RAN}' autofocus onfocus={RAN}>link</a>",
    f"\"'><details open ontoggle={RAN}>",
    "<style>@import url(https://example.org/a.css)</style><base href=https://example.org/>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "{{ 7*1234567 }} {% include 'page.css' %} ${7*1234567} <%= 7*1234567 %>",
    "&lt;b&gt; &amp;amp; &#x3c;script&#x3e;",
    "__proto__ constructor toString",
]
BIDI = "".join(map(chr, (0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
CONTROLS = "".join(map(chr, (*range(1, 32), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF)))
TEXTS = {
    "markup": "\n".join(MARKUP),
    "bidi": f"plain {BIDI} \u202egnirts\u202c שלום עולם مرحبا end",
    "marks": "e\u0301" * 20 + " Z" + "\u0300\u0330\u20dd" * 40 + " n\u0303",
    "emoji": "\u200d".join("\U0001f469\U0001f469\U0001f467") + " \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "long line": "x" * 10_000,
    "long words": "word " * 2_000,
    "controls": f"nul \0 {CONTROLS} \x1b[31mred\x1b[0m \r\r\n end",
    "not UTF-8": "caf\ufffd \ufffd\ufffd r\ufffdsum\ufffd",
}
NAMES = [
    *MARKUP,
    "../../etc/passwd",
    f"name {BIDI}\u202efdp.exe",
    f"controls {CONTROLS}\0",
    "n" * 500,
    "surrogate \udcff",
    "",
]
DOCUMENTS = [
    *(Document(name, text, n_replaced=text.count("\ufffd")) for name, text in TEXTS.items()),
    *(Document(name, f"{MARKUP[i % len(MARKUP)]} a text of its own, {i}") for i, name in enumerate(NAMES)),
]
