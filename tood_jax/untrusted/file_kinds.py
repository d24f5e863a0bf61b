"""Recognize files that a failed download or a version control system left in place of the expected ones."""


def unexpected_kind(start: bytes) -> str:
    """Describe a file by its first bytes if it is a Git LFS pointer or an HTML page, with the remedy; otherwise "".

    Args:
        start: at least the first 256 bytes.
    """
    start = start[:256].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull`)"
    if start[:1] == b"<":
        return "an HTML or XML page (was the download refused?)"
    return ""
