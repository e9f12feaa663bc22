"""The feature streams of the data sets known here; nothing below the importers and the generator names a stream."""

STREAMS = {"audio": 0, "vision": 0}
"""Named in every folder, so that runs on different files of a data set have the same modalities; no width until an
array has one."""
MODALITIES = ("text", *STREAMS)
