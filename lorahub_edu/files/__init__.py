"""Files that the course needs: in a folder, in the cache, on the hub, on the package index.

In order: `catalogue` (what is fetched, with hashes), `assets` (found or fetched), `sources` (the network), `save` (the
one atomic write).
"""
