"""Links from these pages to the project's files: the site gets a copy of each file it links to.

A page links to `../../examples/generate.py`, which works in a clone. In the site the file lies at
`files/examples/generate.py`. A link to a file that does not exist is a warning, which
`mkdocs build --strict` makes an error.
"""

import logging
import os
import re
from pathlib import Path

from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.plugins.hooks")
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s]+)\)")


def outside(target, page, docs):
    """The path within the project of a link that leaves the docs, or None."""
    file = Path(os.path.normpath(Path(docs) / Path(page).parent / target))
    if file.is_relative_to(docs):
        return None
    return file.relative_to(Path(docs).parent)


def on_files(files, config):
    docs = config.docs_dir
    for page in files.documentation_pages():
        for _, target in LINK.findall(page.content_string):
            name = outside(target, page.src_uri, docs)
            if name is None or files.get_file_from_path(f"files/{name}"):
                continue
            source = Path(docs).parent / name
            if source.is_file():
                copy = File.generated(config, f"files/{name}", abs_src_path=str(source))
                files.append(copy)
            elif not source.is_dir():
                log.warning(f"{page.src_uri} links to {target}, which does not exist")
    return files


def on_page_markdown(markdown, page, config, files):
    here = Path(page.file.src_uri).parent

    def moved(link):
        name = outside(link[2], page.file.src_uri, config.docs_dir)
        if name is None:
            return link[0]
        if not files.get_file_from_path(f"files/{name}"):
            return link[1]  # a folder, or nothing: `on_files` has warned
        return f"[{link[1]}]({os.path.relpath(f'files/{name}', here)})"

    return LINK.sub(moved, markdown)
