"""Link traces: readers of public formats and seeded generators, all of which make ``LinkTrace`` records."""

from __future__ import annotations

from adaptsplit.links.clock import LinkClock
from adaptsplit.links.csvfile import CSV as CSV
from adaptsplit.links.description import describe, format_description, plot
from adaptsplit.links.generators import link_generators
from adaptsplit.links.mahimahi import MAHIMAHI as MAHIMAHI
from adaptsplit.links.readers import LinkReader, link_readers, read_links
from adaptsplit.links.spec import FileLink, GenerateLink, LinkSpec, build_links
from adaptsplit.links.starlink import STARLINK as STARLINK
from adaptsplit.links.trace import LinkStatistics, LinkTrace

__all__ = [
    "FileLink",
    "GenerateLink",
    "LinkClock",
    "LinkReader",
    "LinkSpec",
    "LinkStatistics",
    "LinkTrace",
    "build_links",
    "describe",
    "format_description",
    "link_generators",
    "link_readers",
    "plot",
    "read_links",
]
