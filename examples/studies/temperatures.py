"""Each method at temperatures from 0.2 to 1.0, on drafts of the same temperature."""

from project import Study, run_study

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
METHODS = ("pit", "best-of-n", "resample")

STUDY = Study(
    [f"{method}@{value}" for value in TEMPERATURES for method in METHODS],
    [
        f"--input={','.join(f'{method}@{value}' for method in METHODS)} --out=temperature-{value}"
        for value in TEMPERATURES
    ],
)

if __name__ == "__main__":
    run_study(__doc__, lambda _: STUDY)
