"""`python nbs/results/lessons OUT`: see `runner`."""

from runner import main

if __name__ == "__main__":
    main()
