"""Files: written whole, locked, cached; pictures and animations."""
