"""The files that the course needs: `sources` on the network, the `catalogue`, `assets` found or fetched, `save`."""
