"""Forms of other libraries that `kamim export` writes, one file each: `export(opened) -> Exported`."""
