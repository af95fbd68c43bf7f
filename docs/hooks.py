"""For the site: pdoc's pages of all modules lie under api/, and links to them are checked like all others."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# What `make docs` has pdoc write, before the site is built.
PDOC = Path("build/pdoc")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pdoc's pages to what the site holds. Without them the navigation has a broken link, which ends a strict build."""
    for path in sorted(PDOC.rglob("*.*")):
        name = path.relative_to(PDOC).as_posix()
        files.append(File(name, str(PDOC), config.site_dir, config.use_directory_urls))
    return files
