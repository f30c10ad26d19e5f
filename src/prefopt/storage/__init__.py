"""Files that survive a kill: written whole or not at all, locked, and checked by digests."""
