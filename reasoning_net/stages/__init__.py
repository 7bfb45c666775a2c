"""Offline stages, one file each: they hand files to each other, and serving imports none of them."""
