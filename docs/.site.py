"""The files outside of docs/ that pages link to, as part of the site: a hook of mkdocs."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

SHIPPED = ("deploy/**/*", "config.example.yaml")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Have them copied into files/, under the names that they have in the repository."""
    for path in (path for pattern in SHIPPED for path in sorted(ROOT.glob(pattern))):
        if path.is_file():
            name = f"files/{path.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Have links that leave docs/ lead there."""
    up = "../" * (page.file.src_uri.count("/") + 1)
    return markdown.replace(f"]({up}", f"]({up.removeprefix('../')}files/")
