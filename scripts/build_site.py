"""Build the manual as a site in build/site: .venv/bin/python scripts/build_site.py

The pages of docs/, reports/, CONTRIBUTING.md and CHANGELOG.md are copied to one folder, since a site has one root.
Links between them are rewritten; a link to any other file of the repository becomes its path, and a link to a .py file
that is alone on its line becomes the code. A broken link fails.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "site_pages"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
CODE = re.compile(r"^\[[^\]]*\]\(([^)\s#]+\.py)\)$", re.MULTILINE)
FENCE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def place_in_site(path: Path) -> Path | None:
    """Where a file of the repository lies in the site; None if the site does not have it."""
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "docs":
        return Path(*relative.parts[1:])
    if relative.parts[0] == "reports" or relative.name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        return relative
    return None


def rewrite(text: str, source: Path, place: Path) -> str:
    """The text of a page with its relative links as the site needs them; code is left as it is."""

    def link(match: re.Match) -> str:
        image, label, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        if not target or re.match(r"[a-z]+:", target):
            return match.group(0)
        file = (source.parent / target).resolve()
        if not file.exists() or not file.is_relative_to(ROOT):
            return match.group(0)  # the build reports it
        there = place_in_site(file / "README.md" if file.is_dir() and (file / "README.md").is_file() else file)
        if there is None or file.is_dir():
            path = f"`{file.relative_to(ROOT)}`"
            return path if label.strip("`") == path.strip("`") else f"{label} ({path})"
        return f"{image}[{label}]({os.path.relpath(there, place.parent)}{anchor})"

    def code(match: re.Match) -> str:
        file = source.parent / match.group(1)
        return f"```python\n{file.read_text(encoding='utf-8')}```" if file.exists() else match.group(0)

    parts = FENCE.split(CODE.sub(code, text))
    return "".join(part if number % 2 else LINK.sub(link, part) for number, part in enumerate(parts))


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    files = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    files += [file for folder in ("docs", "reports") for file in (ROOT / folder).rglob("*") if file.is_file()]
    for file in files:
        place = place_in_site(file)
        assert place is not None
        target = PAGES / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            target.write_text(rewrite(file.read_text(encoding="utf-8"), file, place), encoding="utf-8")
        else:
            shutil.copyfile(file, target)
    program = Path(sys.executable).with_name("zensical")
    sys.exit(subprocess.run([program, "build", "--clean", "--strict"], cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
