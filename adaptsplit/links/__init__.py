"""Link traces: readers of public formats and seeded generators, all of which make ``LinkTrace`` records."""

from __future__ import annotations

from adaptsplit.links.chain import MarkovChain, fit_markov
from adaptsplit.links.cicv5g import CICV5G as CICV5G
from adaptsplit.links.clock import LinkClock
from adaptsplit.links.compose import inject_outages, jittered, rtt_from, splice
from adaptsplit.links.csvfile import CSV as CSV
from adaptsplit.links.description import describe, format_description, made_by, plot
from adaptsplit.links.generators import link_generators
from adaptsplit.links.iperf3 import IPERF3 as IPERF3
from adaptsplit.links.livelog import LIVE_LOG as LIVE_LOG
from adaptsplit.links.mahimahi import MAHIMAHI as MAHIMAHI
from adaptsplit.links.nyu_mets import NYU_METS as NYU_METS
from adaptsplit.links.nyu_mets import NYU_METS_LOG as NYU_METS_LOG
from adaptsplit.links.pensieve import PENSIEVE as PENSIEVE
from adaptsplit.links.perama import PERAMA as PERAMA
from adaptsplit.links.pinglog import PING as PING
from adaptsplit.links.readers import LinkReader, link_readers, read_links, read_recordings
from adaptsplit.links.recording import Recording
from adaptsplit.links.spec import FileLink, GenerateLink, LinkSpec, SpliceLink, build_links, describe_specs
from adaptsplit.links.starlink import STARLINK as STARLINK
from adaptsplit.links.trace import LinkStatistics, LinkTrace
from adaptsplit.links.ucc5g import UCC5G as UCC5G

__all__ = [
    "FileLink",
    "GenerateLink",
    "LinkClock",
    "LinkReader",
    "LinkSpec",
    "LinkStatistics",
    "LinkTrace",
    "MarkovChain",
    "Recording",
    "SpliceLink",
    "build_links",
    "describe",
    "describe_specs",
    "fit_markov",
    "format_description",
    "inject_outages",
    "jittered",
    "link_generators",
    "link_readers",
    "made_by",
    "plot",
    "read_links",
    "read_recordings",
    "rtt_from",
    "splice",
]
