"""Files: atomic writes, locks, the cache; images and animations."""
