"""What a sequence keeps: pages, page tables, common prefixes, and the one form that is stored or sent.

Knows token ids and rows of values; never text, weights or the mathematics.
"""

from earthshine.kv.arrivals import Arrival
from earthshine.kv.codec import BlobReader, BlobWriter, KVBlob, bytes_of, read_header
from earthshine.kv.header import BlobHeader, BlobLayout, Part, PartKind, ValueFormat
from earthshine.kv.page_blob import PageBlobs, piece_header
from earthshine.kv.page_files import PageFiles, PageFilesStats
from earthshine.kv.page_key import PageKey, PageKeys
from earthshine.kv.page_reads import PageFetch
from earthshine.kv.page_table import PageTable
from earthshine.kv.page_tier import PageParts, PageStore, PageTier
from earthshine.kv.pages import PagePool
from earthshine.kv.prefix import common_prefix
from earthshine.kv.prefix_cache import PrefixCache
from earthshine.kv.recurrence import Segment
from earthshine.kv.states import StatePool

__all__ = [
    "Arrival",
    "BlobHeader",
    "BlobLayout",
    "BlobReader",
    "BlobWriter",
    "KVBlob",
    "PageBlobs",
    "PageFetch",
    "PageFiles",
    "PageFilesStats",
    "PageKey",
    "PageKeys",
    "PageParts",
    "PagePool",
    "PageStore",
    "PageTable",
    "PageTier",
    "Part",
    "PartKind",
    "PrefixCache",
    "Segment",
    "StatePool",
    "ValueFormat",
    "bytes_of",
    "common_prefix",
    "piece_header",
    "read_header",
]
