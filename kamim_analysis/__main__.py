"""`python -m kamim_analysis` is `kamim`."""

from .cli import main

if __name__ == "__main__":
    main()
