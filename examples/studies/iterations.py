"""Five iterations without a stop rule, ranked by Bradley-Terry."""

from project import run_study

if __name__ == "__main__":
    run_study(__doc__, ["pit-5"], ["--input=pit-5 --out=iterations"])
