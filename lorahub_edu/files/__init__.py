"""Files that the course needs: in a folder, in the cache, on the hub, on the package index.

In order: `assets` (found or fetched; catalogue.toml has their hashes), `sources` (the network), `save` (the one atomic
write), `course` (lessons and exercises, laid out in a learner's folder).
"""
