"""Models: the contract, the local embedder, one file per wire format."""
