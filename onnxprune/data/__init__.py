"""Where examples come from and how they become what a model eats.

Three steps, each a function of the one before: `read` turns a source into raw arrays, `fit` lays
them out for the inputs of a model without converting anything yet, and `batches` converts a batch
at a time, in the background, while the one before trains. `check_target` and `split_validation`
stand between the last two. Memory stays near that of the raw arrays throughout.

    raw = read("digits")
    data = fit(raw, [InputSpec(name="image", dtype=np.dtype("f4"), shape=(None, 1, 8, 8))])
    train = check_target(data.train, "cross-entropy", classes=10)
    for batch in batches(train, 32, rng=np.random.default_rng(0)):
        batch["image"], batch[TARGET]

Whatever does not fit raises `DataError` with what was expected, what was found, and what to do.
"""

from onnxprune.data.batches import batches, split_validation
from onnxprune.data.fit import fit, input_specs
from onnxprune.data.layout import LAYOUTS, Arrangement, arrangements
from onnxprune.data.sources import EMBEDDED, Part, Raw, Source, read
from onnxprune.data.split import TARGET, Conversion, Data, InputSpec, Split
from onnxprune.data.targets import IGNORED, check_target

__all__ = [
    "EMBEDDED",
    "IGNORED",
    "LAYOUTS",
    "TARGET",
    "Arrangement",
    "Conversion",
    "Data",
    "InputSpec",
    "Part",
    "Raw",
    "Source",
    "Split",
    "arrangements",
    "batches",
    "check_target",
    "fit",
    "input_specs",
    "read",
    "split_validation",
]
