"""What is known about a setting besides its type, and the heading of the help that it belongs to."""

from enum import Flag, StrEnum, auto

from pydantic.fields import FieldInfo


class Fact(Flag):
    """What is known about a setting besides its type, declared on its field: `resume: Annotated[bool, Fact.start]`.

    A setting without facts is part of a run's identity: it is saved, compared on --resume, shared by recipes, and
    handed to the SFT that `pit rl` starts. Each text or path declares what it names (tests/settings/test_facts.py).
    """

    start = auto()  # how one start goes (--resume): not saved, not for recipes
    execution = auto()  # how a run is executed, not what it is: may change when the run is resumed
    own = auto()  # RL has its own value; not handed to the SFT that `pit rl` starts
    handed_on = auto()  # if not given, later stages use the value of the gap model's run
    process = auto()  # part of what a calibration certifies: its threshold holds only for the same value
    off_card = auto()  # not listed on a model card: shown there in another way, or not about the model

    text = auto()  # names no file
    base = auto()  # a base model
    file = auto()  # a file that is read, or hub:OWNER/NAME
    files = auto()  # several of them in one text, comma-separated
    named_file = auto()  # FILE or NAME=FILE
    run = auto()  # a run folder that is read, or cmd:COMMAND
    judge = auto()  # oracle, gap:RUN, hf:MODEL, openai:MODEL, labels:FILE, cmd:COMMAND
    output = auto()  # a file or folder that is written: not part of the identity

    argument = auto()  # a positional argument on the command line
    repeated = auto()  # a flag that may be given several times


READ = Fact.base | Fact.file | Fact.files | Fact.named_file | Fact.run | Fact.judge


class Section(StrEnum):
    """A heading in the help of a command, in the order of the help.

    Declared per class of settings (`section = Section.model`), and on a field that belongs to another section.
    """

    common = "Common options"  # the few that most people use
    data = "Data"
    method = "Method"
    runs = "Earlier runs"
    model = "Model"
    rl = "Reinforcement learning"
    training = "Training"
    generation = "Generation"
    endpoints = "Endpoints"
    stop = "Stopping"
    server = "Server"
    judges = "Judges"
    comparison = "Comparison and report"
    card = "Model card and hub"
    hardware = "Hardware and memory"
    output = "Output"
    other = "Other options"  # those that are not settings: --config, --help


def facts_of(field: FieldInfo) -> Fact:
    facts = Fact(0)
    for item in field.metadata:
        if isinstance(item, Fact):
            facts |= item
    return facts
