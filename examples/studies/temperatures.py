"""Quality as a function of the sampling temperature, from 0.2 to 1.0."""

from project import run_study

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)

if __name__ == "__main__":
    run_study(
        __doc__,
        [f"temperature@{value}" for value in TEMPERATURES],
        [f"--input={','.join(f'temperature@{value}' for value in TEMPERATURES)} --out=temperatures"],
    )
