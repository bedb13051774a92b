"""A reader of HTML pages for tests: checks that tags nest, and collects texts and pictures."""

import base64
import io
from html.parser import HTMLParser

import matplotlib.image

VOID = {"meta", "link", "img"}


class Reader(HTMLParser):
    """Check that tags nest, and collect texts and references."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.references, self.tags, self.text = [], [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def pictures(self) -> list:
        return [
            matplotlib.image.imread(_decoded(reference))
            for reference in self.references
            if reference.startswith("data:image/png")
        ]


def _decoded(reference: str):
    return io.BytesIO(base64.b64decode(reference.partition("base64,")[2], validate=True))
