"""Five iterations without a stop rule, ranked by Bradley-Terry."""

from project import Study, run_study

if __name__ == "__main__":
    run_study(__doc__, lambda _: Study(["pit-5"], ["--input=pit-5 --out=iterations"]))
