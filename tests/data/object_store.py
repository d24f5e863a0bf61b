"""An object store in memory that takes the place of gs://."""

from fsspec.implementations.memory import MemoryFileSystem


class FakeStore(MemoryFileSystem):
    """The file system of gs://bucket/name."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012 - a class attribute as in fsspec
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("gs://", "/").replace("gcs://", "/"))
