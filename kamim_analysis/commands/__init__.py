"""Sub-commands of `kamim`, one file each: HELP in a line, and `run(arguments)`. Heavy imports wait inside functions."""
